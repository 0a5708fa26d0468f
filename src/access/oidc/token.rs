//! A token of an issuer (OpenID Connect Core 1.0, section 2; RFC 7519; RFC 8725): its shape, and what it claims.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::keys::KeySet;
use crate::access::patterns::matches_text;
use crate::config::{Algorithm, IssuerConfig, MAX_IDENTITY_BYTES};
use crate::printable::is_unprintable;

/// Largest token in bytes. Those of CI services have one or two thousand; those with many groups are larger.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// Longest id of a key that is looked for.
const MAX_KEY_ID_BYTES: usize = 512;
/// How far the clocks of an issuer and of this server may differ.
const LEEWAY: Duration = Duration::from_secs(60);
/// Types of tokens (`typ`) that say who somebody is, in lower case. A token without a type is one, too. Others, such as
/// those for a logout, are signed with the same keys and say something else.
const TYPES: [&str; 4] = ["jwt", "application/jwt", "at+jwt", "application/at+jwt"];

/// A token that is not verified.
pub(super) struct UnverifiedToken<'a> {
    signed: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

/// A token whose signature is one of its issuer. Only such a token is asked what it claims.
pub(super) struct SignedToken<'a>(&'a Map<String, Value>);

/// Why a token of a configured issuer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefused {
    #[error("its algorithm is not accepted (auth.issuer.algorithms)")]
    Algorithm,
    #[error("its header is not one of a token that says who somebody is")]
    Header,
    #[error("no key of its issuer has its key id and algorithm")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it was not issued for this registry: its audience (aud) is not auth.issuer.audience")]
    Audience,
    #[error("it does not say until when it is valid (exp)")]
    NoExpiry,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet (nbf); the clock of this server or of its issuer may be wrong")]
    NotYet,
    #[error("it does not have the claims that auth.issuer.require demands")]
    Required,
    #[error("the claim of auth.issuer.name is missing, or cannot be a name")]
    Name,
}

// === impl UnverifiedToken ===

impl<'a> UnverifiedToken<'a> {
    /// `None` for a text that is no token, such as a password.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part: &str| json::object(&URL_SAFE_NO_PAD.decode(part).ok()?);
        Some(Self { signed, signature, header: object(header)?, claims: object(claims)? })
    }

    /// The issuer that it claims.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// The algorithm and the id of the key, if they may be those of a token here.
    fn key(&self, config: &IssuerConfig) -> Result<(Algorithm, Option<&str>), TokenRefused> {
        let algorithm = self.header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse);
        let algorithm = algorithm.filter(|algorithm| config.algorithms.contains(algorithm));
        let algorithm = algorithm.ok_or(TokenRefused::Algorithm)?;
        let is_type = |of_token: &Value| {
            of_token.as_str().is_some_and(|of_token| TYPES.contains(&of_token.to_ascii_lowercase().as_str()))
        };
        // What `crit` names must be understood, and nothing of that is (RFC 7515, section 4.1.11).
        if self.header.contains_key("crit") || !self.header.get("typ").is_none_or(is_type) {
            return Err(TokenRefused::Header);
        }
        match self.header.get("kid") {
            None => Ok((algorithm, None)),
            Some(Value::String(id)) if id.len() <= MAX_KEY_ID_BYTES => Ok((algorithm, Some(id))),
            Some(_) => Err(TokenRefused::Header),
        }
    }

    /// The token, if one of the keys has signed it.
    pub(super) fn verify(&self, config: &IssuerConfig, keys: &KeySet) -> Result<SignedToken<'_>, TokenRefused> {
        let (algorithm, id) = self.key(config)?;
        let key = keys.find(id, algorithm).ok_or(TokenRefused::UnknownKey)?;
        let signature = URL_SAFE_NO_PAD.decode(self.signature).map_err(|_| TokenRefused::Signature)?;
        match key.verifies(algorithm, self.signed.as_bytes(), &signature) {
            true => Ok(SignedToken(&self.claims)),
            false => Err(TokenRefused::Signature),
        }
    }

    /// Whether a key that its issuer has made since may be the right one, after a refusal because of these keys.
    pub(super) fn may_have_new_key(&self, refused: TokenRefused) -> bool {
        match refused {
            TokenRefused::UnknownKey => true,
            // Without the id of a key, a new key shows as a wrong signature.
            TokenRefused::Signature => !self.header.contains_key("kid"),
            _ => false,
        }
    }
}

// === impl SignedToken ===

impl SignedToken<'_> {
    /// Checks what the token claims.
    ///
    /// Returns the time at which it expires.
    pub(super) fn check(&self, config: &IssuerConfig, now: SystemTime) -> Result<SystemTime, TokenRefused> {
        let is_ours = |audience: &Value| {
            audience.as_str().is_some_and(|audience| config.audience.iter().any(|ours| ours == audience))
        };
        let is_for_us = match self.0.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
            Some(audience) => is_ours(audience),
            None => false,
        };
        if !is_for_us {
            return Err(TokenRefused::Audience);
        }
        let expires = self.0.get("exp").and_then(time).ok_or(TokenRefused::NoExpiry)?;
        if now >= expires + LEEWAY {
            return Err(TokenRefused::Expired);
        }
        if let Some(not_before) = self.0.get("nbf")
            && time(not_before).is_none_or(|not_before| now + LEEWAY < not_before)
        {
            return Err(TokenRefused::NotYet);
        }
        for (claim, patterns) in &config.require {
            let is_one = |text: &str| patterns.iter().any(|pattern| matches_text(pattern.as_str(), text));
            if !self.texts(claim).iter().any(|text| is_one(text)) {
                return Err(TokenRefused::Required);
            }
        }
        Ok(expires)
    }

    /// The value of the identity: one line of text.
    pub(super) fn name(&self, config: &IssuerConfig) -> Result<String, TokenRefused> {
        let name = match self.claim(&config.name_claim) {
            Some(Value::String(name)) => name.clone(),
            Some(Value::Number(number)) if !number.is_f64() => number.to_string(),
            _ => return Err(TokenRefused::Name),
        };
        let length = config.name.len() + 1 + name.len();
        if name.is_empty() || length > MAX_IDENTITY_BYTES || name.chars().any(is_unprintable) {
            return Err(TokenRefused::Name);
        }
        Ok(name)
    }

    /// The groups of the identity.
    pub(super) fn groups(&self, config: &IssuerConfig) -> Vec<String> {
        config.groups_claim.as_deref().map(|claim| self.texts(claim)).unwrap_or_default()
    }

    /// The values of a claim as text: all items of a list, and none of an object.
    fn texts(&self, claim: &str) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(yes) => Some(yes.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        };
        match self.claim(claim) {
            Some(Value::Array(items)) => items.iter().filter_map(text).collect(),
            Some(value) => text(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// A claim by its name, or one inside of others by a path that begins with a slash (RFC 6901).
    fn claim(&self, name: &str) -> Option<&Value> {
        let Some(path) = name.strip_prefix('/') else { return self.0.get(name) };
        let unescaped = |part: &str| part.replace("~1", "/").replace("~0", "~");
        let mut parts = path.split('/').map(unescaped);
        let first = self.0.get(&parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(&part))
    }
}

/// A NumericDate (RFC 7519, section 2): seconds since 1970, which may have a fraction.
fn time(value: &Value) -> Option<SystemTime> {
    /// The year 9999. Later times cannot be added to.
    const LATEST: f64 = 253_402_300_799.0;
    let seconds = value.as_f64()?.clamp(0.0, LATEST);
    Some(UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::access::oidc::test_keys::TestKey;

    const NOW: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn config(require: &[(&str, &str)]) -> IssuerConfig {
        IssuerConfig::for_test("https://issuer.example", require)
    }

    fn text(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    fn claims(changes: Value) -> Value {
        let mut claims =
            json!({ "iss": "https://issuer.example", "aud": "registry.example", "exp": NOW + 300, "sub": "ann" });
        for (claim, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
                value => claims[claim] = value.clone(),
            }
        }
        claims
    }

    fn checked(config: &IssuerConfig, changes: Value) -> Result<(), TokenRefused> {
        let text = text(r#"{"alg":"RS256"}"#, &claims(changes).to_string());
        SignedToken(&UnverifiedToken::parse(&text).unwrap().claims).check(config, now()).map(drop)
    }

    #[test]
    fn a_password_is_no_token() {
        let good = text(r#"{"alg":"RS256"}"#, r#"{"iss":"x"}"#);
        assert_eq!(UnverifiedToken::parse(&good).unwrap().issuer(), Some("x"));
        let no_issuer = text("{}", "{}");
        assert_eq!(UnverifiedToken::parse(&no_issuer).unwrap().issuer(), None);
        for other in [
            "",
            "secret",
            "a.b.c",
            "..",
            "e30.e30",
            "e30.e30.c2ln.c2ln",
            &format!("{good}."),
            &format!(" {good}"),
            &format!("Bearer {good}"),
            &text("[]", "{}"),
            &text("{}", "1"),
            &text("{}", r#"{"iss":"a","iss":"b"}"#),
            &text(r#"{"alg":"RS256","alg":"none"}"#, "{}"),
            &text("{}", &format!(r#"{{"x":"{}"}}"#, "y".repeat(MAX_TOKEN_BYTES))),
            &text("{}", &format!("{}{}", "{\"x\":[".repeat(2000), "]}".repeat(2000))),
        ] {
            assert!(UnverifiedToken::parse(other).is_none(), "{}", &other[..other.len().min(60)]);
        }
    }

    #[test]
    fn headers_name_an_accepted_algorithm_and_a_key() {
        let key = |header: &str| {
            let text = text(header, "{}");
            let token = UnverifiedToken::parse(&text).unwrap();
            token.key(&config(&[])).map(|(algorithm, id)| format!("{algorithm} {id:?}"))
        };
        assert_eq!(key(r#"{"alg":"RS256","kid":"a/../b\n"}"#).as_deref(), Ok("RS256 Some(\"a/../b\\n\")"));
        for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
            assert_eq!(key(&format!(r#"{{"alg":"ES256","typ":"{typ}"}}"#)).as_deref(), Ok("ES256 None"), "{typ}");
        }
        for (header, refused) in [
            ("{}", TokenRefused::Algorithm),
            (r#"{"alg":"none"}"#, TokenRefused::Algorithm),
            (r#"{"alg":"HS256"}"#, TokenRefused::Algorithm),
            (r#"{"alg":"rs256"}"#, TokenRefused::Algorithm),
            (r#"{"alg":"ES384"}"#, TokenRefused::Algorithm),
            (r#"{"alg":["RS256"]}"#, TokenRefused::Algorithm),
            (r#"{"alg":"RS256","typ":"logout+jwt"}"#, TokenRefused::Header),
            (r#"{"alg":"RS256","typ":"roadstead+jwt"}"#, TokenRefused::Header),
            (r#"{"alg":"RS256","typ":1}"#, TokenRefused::Header),
            (r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, TokenRefused::Header),
            (r#"{"alg":"RS256","kid":7}"#, TokenRefused::Header),
            (r#"{"alg":"RS256","kid":null}"#, TokenRefused::Header),
            (&format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(MAX_KEY_ID_BYTES + 1)), TokenRefused::Header),
        ] {
            assert_eq!(key(header), Err(refused), "{header}");
        }
    }

    #[test]
    fn only_a_signed_token_can_be_asked_what_it_claims() {
        let keys = [TestKey::p256(), TestKey::p256()];
        let set = json!({ "keys": [keys[0].jwk("a")] }).to_string();
        let set = KeySet::parse(set.as_bytes()).unwrap();
        let refused = |header: &str, key: &TestKey| {
            let unsigned = text(header, &claims(json!({})).to_string());
            let (signed, _) = unsigned.rsplit_once('.').unwrap();
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(key.sign("ES256", signed.as_bytes())));
            let token = UnverifiedToken::parse(&token).unwrap();
            let refused = token.verify(&config(&[]), &set).err();
            (refused, refused.is_some_and(|refused| token.may_have_new_key(refused)))
        };
        for (header, of_key, of_other) in [
            (r#"{"alg":"ES256","kid":"a"}"#, (None, false), (Some(TokenRefused::Signature), false)),
            (r#"{"alg":"ES256"}"#, (None, false), (Some(TokenRefused::Signature), true)),
            (
                r#"{"alg":"ES256","kid":"b"}"#,
                (Some(TokenRefused::UnknownKey), true),
                (Some(TokenRefused::UnknownKey), true),
            ),
            (
                r#"{"alg":"none","kid":"a"}"#,
                (Some(TokenRefused::Algorithm), false),
                (Some(TokenRefused::Algorithm), false),
            ),
        ] {
            assert_eq!((refused(header, &keys[0]), refused(header, &keys[1])), (of_key, of_other), "{header}");
        }
    }

    #[test]
    fn audience_and_times_are_checked() {
        for (changes, expected) in [
            (json!({}), Ok(())),
            (json!({ "aud": ["x", "registry.example"] }), Ok(())),
            (json!({ "aud": ["x", 1, null, ["registry.example"]] }), Err(TokenRefused::Audience)),
            (json!({ "aud": "registry.example.evil" }), Err(TokenRefused::Audience)),
            (json!({ "aud": "Registry.example" }), Err(TokenRefused::Audience)),
            (json!({ "aud": { "registry.example": 1 } }), Err(TokenRefused::Audience)),
            (json!({ "aud": null }), Err(TokenRefused::Audience)),
            (json!({ "exp": null }), Err(TokenRefused::NoExpiry)),
            (json!({ "exp": "1900000000" }), Err(TokenRefused::NoExpiry)),
            (json!({ "exp": [1_900_000_000] }), Err(TokenRefused::NoExpiry)),
            (json!({ "exp": NOW - 59 }), Ok(())),
            (json!({ "exp": NOW - 60 }), Err(TokenRefused::Expired)),
            (json!({ "exp": NOW as f64 + 0.5 }), Ok(())),
            (json!({ "exp": -1 }), Err(TokenRefused::Expired)),
            (json!({ "exp": -1e300 }), Err(TokenRefused::Expired)),
            (json!({ "exp": 0 }), Err(TokenRefused::Expired)),
            (json!({ "exp": 1e300 }), Ok(())),
            (json!({ "exp": u64::MAX }), Ok(())),
            (json!({ "nbf": NOW + 60 }), Ok(())),
            (json!({ "nbf": NOW + 61 }), Err(TokenRefused::NotYet)),
            (json!({ "nbf": u64::MAX }), Err(TokenRefused::NotYet)),
            (json!({ "nbf": "soon" }), Err(TokenRefused::NotYet)),
            (json!({ "nbf": -5 }), Ok(())),
        ] {
            assert_eq!(checked(&config(&[]), changes.clone()), expected, "{changes}");
        }
    }

    #[test]
    fn required_claims_must_have_one_of_the_values() {
        let config = config(&[("ref", "refs/heads/*"), ("owner_id", "12"), ("/k8s.io/namespace", "ci-*")]);
        let good = json!({ "ref": "refs/heads/main", "owner_id": 12, "k8s.io": { "namespace": "ci-a" } });
        let with = |claim: &str, value: Value| {
            let mut changes = good.clone();
            changes[claim] = value;
            checked(&config, changes)
        };
        assert_eq!(checked(&config, good.clone()), Ok(()));
        assert_eq!(with("owner_id", json!("12")), Ok(()));
        assert_eq!(with("owner_id", json!(["1", "12"])), Ok(()), "one item is enough");
        for (claim, value) in [
            ("ref", json!("refs/heads/a/b")),
            ("ref", json!("refs/tags/main")),
            ("ref", json!({ "0": "refs/heads/main" })),
            ("ref", Value::Null),
            ("owner_id", json!(120)),
            ("owner_id", json!([])),
            ("owner_id", json!([["12"]])),
            ("k8s.io", json!({ "namespace": "prod" })),
            ("k8s.io", json!("ci-a")),
        ] {
            assert_eq!(with(claim, value.clone()), Err(TokenRefused::Required), "{claim}: {value}");
        }
    }

    #[test]
    fn names_are_one_line_of_text() {
        let name = |value: Value| {
            let text = text("{}", &claims(json!({ "sub": value })).to_string());
            SignedToken(&UnverifiedToken::parse(&text).unwrap().claims).name(&config(&[]))
        };
        for (value, expected) in [
            (json!("repo:acme/app:ref:refs/heads/main"), "repo:acme/app:ref:refs/heads/main"),
            (json!("Ann Smith ü"), "Ann Smith ü"),
            (json!(1234), "1234"),
            (json!(-1), "-1"),
        ] {
            assert_eq!(name(value).as_deref(), Ok(expected));
        }
        for value in [
            json!(""),
            Value::Null,
            json!(true),
            json!(1.5),
            json!(["ann"]),
            json!("a\nb"),
            json!("a\u{202e}b"),
            json!("a\u{0}"),
            json!("x".repeat(MAX_IDENTITY_BYTES)),
        ] {
            assert_eq!(name(value.clone()), Err(TokenRefused::Name), "{value}");
        }
    }

    #[test]
    fn groups_are_the_items_of_a_claim() {
        let mut config = config(&[]);
        let text =
            text("{}", &claims(json!({ "roles": ["a", 1, null, {}], "realm": { "a/b": { "~": "x" } } })).to_string());
        let token = UnverifiedToken::parse(&text).unwrap();
        let token = SignedToken(&token.claims);
        assert_eq!(token.groups(&config), [""; 0]);
        for (claim, groups) in [("roles", &["a", "1"][..]), ("/realm/a~1b/~0", &["x"]), ("/realm", &[]), ("/x/y", &[])]
        {
            config.groups_claim = Some(claim.to_owned());
            assert_eq!(token.groups(&config), groups, "{claim}");
        }
    }
}
