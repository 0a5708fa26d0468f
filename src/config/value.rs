//! Parsing of one value, from TOML or from the text of a variable or flag, with its error message.

use std::net::IpAddr;
use std::num::IntErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use super::units::{self, Size, SizeError};
use super::{
    AccessPattern, Algorithm, ClaimPattern, ClientAuth, ListenAddr, LogFormat, Member, Namespace, OnDenied, Pin, Right,
    Secret, Subject,
};

/// The value of a key before it is parsed.
pub(super) enum RawValue<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

/// A type that a configuration value can have.
pub(super) trait Setting: Sized {
    /// What the value should be, with an example. The message is "… is not " followed by this text.
    const EXPECTED: &'static str;

    /// Parses the text of a variable, of a flag, or of a TOML string.
    fn from_text(text: &str) -> Result<Self, ValueError>;

    /// Parses a TOML value. By default only strings are accepted.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        value.as_str().ok_or(ValueError::Unexpected).and_then(Self::from_text)
    }
}

/// Why a value is not accepted.
pub(super) enum ValueError {
    /// It is not what [`Setting::EXPECTED`] says.
    Unexpected,
    /// A more specific message.
    Because(String),
}

/// A number, size or duration greater than zero.
#[derive(Debug)]
pub(super) struct Positive<T>(pub(super) T);

/// A list. A single value is a list of one. In text, commas separate the values.
#[derive(Debug)]
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

// === impl RawValue ===

impl RawValue<'_> {
    /// Parses the value. The error is a message without location and key.
    pub(super) fn read<T: Setting>(&self) -> Result<T, String> {
        let read = match self {
            Self::Toml(value) => T::from_toml(value),
            Self::Text(text) => T::from_text(text),
        };
        read.map_err(|wrong| match wrong {
            ValueError::Unexpected => format!("{} is not {}", self.shown(), T::EXPECTED),
            ValueError::Because(message) => message,
        })
    }

    /// The value as text for an error.
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("\"{text}\""),
            Self::Toml(DeValue::String(text)) => format!("\"{text}\""),
            Self::Toml(DeValue::Integer(number)) => number.to_string(),
            Self::Toml(DeValue::Float(number)) => number.to_string(),
            Self::Toml(DeValue::Boolean(yes)) => yes.to_string(),
            Self::Toml(DeValue::Datetime(time)) => time.to_string(),
            Self::Toml(DeValue::Array(_)) => "a list".to_owned(),
            Self::Toml(DeValue::Table(_)) => "a table".to_owned(),
        }
    }
}

// === impl Setting ===

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(ValueError::Unexpected),
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        value.as_bool().ok_or(ValueError::Unexpected)
    }
}

impl Setting for usize {
    const EXPECTED: &'static str = "a whole number";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        text.parse().map_err(|_| ValueError::Unexpected)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        let number = value.as_integer().ok_or(ValueError::Unexpected)?;
        Self::from_str_radix(number.as_str(), number.radix()).map_err(|_| ValueError::Unexpected)
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "a quoted string";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() { Err(ValueError::Because("must not be empty".to_owned())) } else { Ok(text.to_owned()) }
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a quoted path";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        String::from_text(text).map(Self::from)
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "a quoted string";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        String::from_text(text).map(Self::from)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        // The error does not repeat the value: an unquoted number may be the password.
        let text = value.as_str().ok_or_else(|| ValueError::Because("must be a quoted string".to_owned()))?;
        Self::from_text(text)
    }
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration; write for example \"60s\" or \"10m\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        units::parse_duration(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for Size {
    const EXPECTED: &'static str = "a size; write for example \"20GiB\" or \"500MB\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        units::parse_size(text).map_err(|wrong| match wrong {
            SizeError::Shape => ValueError::Unexpected,
            SizeError::TooLarge => too_large(&format!("\"{text}\"")),
        })
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        match value.as_integer() {
            Some(number) => {
                let read = u64::from_str_radix(number.as_str(), number.radix());
                read.map(Size).map_err(|error| match error.kind() {
                    IntErrorKind::PosOverflow => too_large(number.as_str()),
                    _ => ValueError::Unexpected,
                })
            }
            None => value.as_str().ok_or(ValueError::Unexpected).and_then(Self::from_text),
        }
    }
}

fn too_large(size: &str) -> ValueError {
    ValueError::Because(format!("{size} is too large; the largest size is {}", units::LARGEST_SIZE))
}

impl Setting for ListenAddr {
    const EXPECTED: &'static str = "an address to listen on; write for example \"127.0.0.1:5000\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        text.parse().map_err(|_| ValueError::Unexpected)
    }
}

impl Setting for IpNet {
    const EXPECTED: &'static str = "an address or a network; write for example \"10.0.0.0/8\" or \"::1\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(Self::from));
        match network.map_err(|_| ValueError::Unexpected)? {
            // The addresses of peers are compared as IPv4 addresses, if they are such.
            Self::V6(network) if network.network().to_ipv4_mapped().is_some() => Err(ValueError::Because(format!(
                "\"{text}\" is an IPv4 network; write it as one, such as \"10.0.0.0/8\""
            ))),
            network => Ok(network.trunc()),
        }
    }
}

impl Setting for LogFormat {
    const EXPECTED: &'static str = "a log format; write \"text\" or \"json\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for Pin {
    const EXPECTED: &'static str = "a pattern of an upstream's images; write for example \"docker.io/library/*:3.*\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for Namespace {
    const EXPECTED: &'static str = "a pattern of repository names; write for example \"team/**\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for Subject {
    const EXPECTED: &'static str = "a user or a group; write for example \"anonymous\", \"ann\" or \"group:dev\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).map_err(ValueError::Because)
    }
}

impl Setting for Member {
    const EXPECTED: &'static str = "a user or an identity; write for example \"ann\" or \"github:acme/*\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).map_err(ValueError::Because)
    }
}

impl Setting for AccessPattern {
    const EXPECTED: &'static str =
        "a pattern of repositories; write for example \"team/**\" or \"docker.io/library/*\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).map_err(ValueError::Because)
    }
}

impl Setting for Algorithm {
    const EXPECTED: &'static str = "an algorithm that is accepted; write \"RS256\", \"RS384\", \"RS512\", \"PS256\", \"PS384\", \
                                    \"PS512\", \"ES256\", \"ES384\" or \"EdDSA\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for ClaimPattern {
    const EXPECTED: &'static str = "the value of a claim; write for example \"1234\" or \"refs/heads/*\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).map_err(ValueError::Because)
    }

    /// Claims that are numbers or booleans are compared as text.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        match (value.as_str(), value.as_bool(), value.as_integer()) {
            (Some(text), ..) => Self::from_text(text),
            (_, Some(yes), _) => Self::from_text(&yes.to_string()),
            (_, _, Some(number)) if number.radix() == 10 => Self::from_text(number.as_str()),
            _ => Err(ValueError::Unexpected),
        }
    }
}

impl Setting for Right {
    const EXPECTED: &'static str = "a right; write \"pull\", \"push\", \"delete\", \"admin\" or \"metrics\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        Self::parse(text).ok_or(ValueError::Unexpected)
    }
}

impl Setting for ClientAuth {
    const EXPECTED: &'static str = "whether clients need a certificate; write \"required\" or \"optional\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        match text {
            "required" => Ok(Self::Required),
            "optional" => Ok(Self::Optional),
            _ => Err(ValueError::Unexpected),
        }
    }
}

impl Setting for OnDenied {
    const EXPECTED: &'static str = "a policy for denied requests; write \"stale\" or \"deny\"";

    fn from_text(text: &str) -> Result<Self, ValueError> {
        match text {
            "stale" => Ok(Self::Stale),
            "deny" => Ok(Self::Deny),
            _ => Err(ValueError::Unexpected),
        }
    }
}

impl<T: Setting + Default + PartialEq> Setting for Positive<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_text(text: &str) -> Result<Self, ValueError> {
        T::from_text(text).and_then(Self::new)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        T::from_toml(value).and_then(Self::new)
    }
}

impl<T: Setting> Setting for OneOrMore<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_text(text: &str) -> Result<Self, ValueError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self(parts.map(|part| item(&RawValue::Text(part))).collect::<Result<_, _>>()?))
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueError> {
        match value.as_array() {
            Some(items) => {
                Ok(Self(items.iter().map(|value| item(&RawValue::Toml(value.get_ref()))).collect::<Result<_, _>>()?))
            }
            None => Ok(Self(vec![T::from_toml(value)?])),
        }
    }
}

impl<T: Default + PartialEq> Positive<T> {
    fn new(value: T) -> Result<Self, ValueError> {
        if value == T::default() { Err(ValueError::Because("must be more than 0".to_owned())) } else { Ok(Self(value)) }
    }
}

/// Parses an item of a list. Its error shows the item instead of the list.
fn item<T: Setting>(raw: &RawValue<'_>) -> Result<T, ValueError> {
    raw.read().map_err(ValueError::Because)
}
