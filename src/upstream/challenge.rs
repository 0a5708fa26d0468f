//! Parser for `WWW-Authenticate` as registries write it (RFC 9110, section 11.6.1; distribution's token specification).
//!
//! Challenges may share one header or be in several headers. Parameters may be quoted, and quoted ones may contain
//! commas (`scope="repository:a:pull,push"`). Unreadable parts are skipped, so that malformed text beside a usable
//! challenge does no harm.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// A challenge of a supported scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Bearer(Bearer),
    /// A Bearer challenge without a realm.
    BearerWithoutRealm,
    Basic,
}

/// The parameters of a Bearer challenge, not validated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

/// The challenges of supported schemes, in order.
pub(super) fn parse(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for line in headers.get_all(WWW_AUTHENTICATE) {
        let line = String::from_utf8_lossy(line.as_bytes());
        found.extend(split(&line).into_iter().filter_map(|raw| raw.read()));
    }
    found
}

/// A challenge of any scheme, with its parameters.
struct RawChallenge<'a> {
    scheme: &'a str,
    parameters: Vec<(&'a str, String)>,
}

// === impl RawChallenge ===

impl RawChallenge<'_> {
    fn read(&self) -> Option<Challenge> {
        if self.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let Some(realm) = self.parameter("realm") else { return Some(Challenge::BearerWithoutRealm) };
        Some(Challenge::Bearer(Bearer { realm, service: self.parameter("service"), scope: self.parameter("scope") }))
    }

    /// The value of a parameter. An empty one counts as absent.
    fn parameter(&self, name: &str) -> Option<String> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        (!value.is_empty()).then(|| value.clone())
    }
}

/// Splits a header into challenges.
fn split(line: &str) -> Vec<RawChallenge<'_>> {
    let mut challenges: Vec<RawChallenge<'_>> = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let (word, after) = take_until(rest, &[' ', '\t', ',', '=']);
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, after) = take_value(value.trim_start());
            if let Some(challenge) = challenges.last_mut() {
                challenge.parameters.push((word, value));
            }
            rest = after;
        } else if word.is_empty() {
            return challenges;
        } else {
            challenges.push(RawChallenge { scheme: word, parameters: Vec::new() });
            rest = after;
        }
    }
}

/// Splits `text` before the first of the `ends`.
fn take_until<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    text.split_at(text.find(ends).unwrap_or(text.len()))
}

/// Splits off a value: a quoted string, without quotes and escapes, or a bare word. An unclosed quote ends with the
/// header.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = take_until(text, &[',', ' ', '\t']);
        return (word.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service, scope })
    }

    fn parsed(lines: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        parse(&headers)
    }

    #[test]
    fn challenges_of_real_registries_are_parsed() {
        let table = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            // gcr.io omits the service, Nexus the scope; nvcr.io sends an error and spaces.
            (r#"Bearer realm="https://gcr.io/v2/token""#, vec![bearer("https://gcr.io/v2/token", None, None)]),
            (
                r#"bearer realm="https://authn.nvidia.com/token", service="registry" , error="invalid_token""#,
                vec![bearer("https://authn.nvidia.com/token", Some("registry"), None)],
            ),
            // Forgejo sends two challenges in one header.
            (
                r#"Bearer realm="https://c.org/v2/token",service="container_registry",scope="*",Basic realm="https://c.org/v2",service="container_registry",scope="*""#,
                vec![bearer("https://c.org/v2/token", Some("container_registry"), Some("*")), Challenge::Basic],
            ),
            (r#"Basic realm="Artifactory Realm""#, vec![Challenge::Basic]),
            ("BASIC", vec![Challenge::Basic]),
            (
                "Bearer realm=https://r/token,service=s,scope=repository:a:pull",
                vec![bearer("https://r/token", Some("s"), Some("repository:a:pull"))],
            ),
            (r#"Bearer realm = "https://r/t" ,  SERVICE = s"#, vec![bearer("https://r/t", Some("s"), None)]),
            (r#"Bearer realm="https://r/t\"x\\y",service="""#, vec![bearer(r#"https://r/t"x\y"#, None, None)]),
            (r#"Negotiate YII=, Digest realm="x", nonce="y", Basic realm="z""#, vec![Challenge::Basic]),
            (r#"Bearer service="s""#, vec![Challenge::BearerWithoutRealm]),
            (r#"Bearer realm="", Basic realm="x""#, vec![Challenge::BearerWithoutRealm, Challenge::Basic]),
            (r#"Bearer realm="https://r/open"#, vec![bearer("https://r/open", None, None)]),
            ("", vec![]),
            (", ,=,=\"", vec![]),
        ];
        for (line, expected) in table {
            assert_eq!(parsed(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn challenges_may_be_in_several_headers() {
        let found = parsed(&[r#"Basic realm="a""#, r#"Bearer realm="https://r/t""#]);
        assert_eq!(found, [Challenge::Basic, bearer("https://r/t", None, None)]);
    }

    proptest! {
        #[test]
        fn no_header_panics(line in "[ -~\t]{0,80}") {
            parsed(&[&line]);
        }

        #[test]
        fn quoted_parameters_parse_back(realm in "[ -!#-\\[\\]-~]{1,40}", scope in "[ -!#-\\[\\]-~]{1,40}") {
            let line = format!(r#"Bearer realm="{realm}",scope="{scope}""#);
            prop_assert_eq!(parsed(&[&line]), vec![bearer(&realm, None, Some(&scope))]);
        }
    }
}
