//! What a request says about its sender in `Authorization`: parsed, and not verified.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderValue;

use super::caller::Caller;
use super::passwords::PasswordLogin;

/// Some clients leave out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credentials<'a> {
    /// None, or an empty user: podman sends that if it has no login.
    None,
    Password(PasswordLogin),
    Token(&'a str),
    /// Something that is no user's, or of a scheme that is not known here.
    Unusable,
}

/// More than one `Authorization` header. A proxy in between may have taken another one for the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeveralCredentials;

impl<'a> Credentials<'a> {
    pub(super) fn of(caller: Caller<'a>) -> Result<Self, SeveralCredentials> {
        let mut headers = caller.authorizations();
        match (headers.next(), headers.next()) {
            (None, _) => Ok(Self::None),
            (Some(header), None) => Ok(Self::parse(header, caller)),
            (Some(_), Some(_)) => Err(SeveralCredentials),
        }
    }

    fn parse(header: &'a HeaderValue, caller: Caller<'a>) -> Self {
        let Ok(text) = header.to_str() else { return Self::Unusable };
        let (scheme, value) = text.split_once(' ').unwrap_or((text, ""));
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Self::Token(value);
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Self::Unusable;
        }
        let decoded = BASE64.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|login| login.split_once(':')) {
            None => Self::Unusable,
            Some(("", _)) => Self::None,
            Some((name, password)) => Self::Password(PasswordLogin::new(name, password, caller.address())),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::AUTHORIZATION;

    use super::*;
    use crate::access::Peer;

    fn parsed(headers: &[&'static str]) -> Result<String, SeveralCredentials> {
        let peer = Peer::at(None);
        let mut map = HeaderMap::new();
        headers.iter().for_each(|header| {
            map.append(AUTHORIZATION, HeaderValue::from_bytes(header.as_bytes()).unwrap());
        });
        Credentials::of(Caller::new(&peer, &map)).map(|credentials| match credentials {
            Credentials::None => "none".to_owned(),
            Credentials::Password(login) => format!("{} with {}", login.name, login.password),
            Credentials::Token(token) => format!("token {token}"),
            Credentials::Unusable => "unusable".to_owned(),
        })
    }

    #[test]
    fn passwords_and_tokens_are_told_apart() {
        for (header, expected) in [
            ("Basic YW5uOnNlY3JldA==", "ann with secret"),
            ("basic YW5uOnNlY3JldA", "ann with secret"),
            ("BASIC  YW5uOmE6Yg== ", "ann with a:b"),
            ("Basic YW5uOg==", "ann with "),
            ("Basic Og==", "none"),
            ("Basic OnNlY3JldA==", "none"),
            ("Basic", "unusable"),
            ("Basic YW5u", "unusable"),
            ("Basic ====", "unusable"),
            ("Basic /zo=", "unusable"),
            ("Bearer a.b.c", "token a.b.c"),
            ("bearer ", "token "),
            ("Negotiate abc", "unusable"),
            ("", "unusable"),
            ("ä", "unusable"),
        ] {
            assert_eq!(parsed(&[header]).as_deref(), Ok(expected), "{header}");
        }
        assert_eq!(parsed(&[]).as_deref(), Ok("none"));
        assert_eq!(parsed(&["Basic Og==", "Basic Og=="]), Err(SeveralCredentials));
    }
}
