//! How one setting is read, from TOML or from the text of a variable or a flag, and what is said when it is wrong.

use std::num::IntErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::units::{self, NoSize, Size};
use super::{ListenAddr, LogFormat, Namespace, OnDenied, Pin, Secret};

/// What stands at a key.
pub(super) enum Raw<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

/// A type that a key can have.
pub(super) trait Setting: Sized {
    /// What a value should be, with an example; follows "… is not ".
    const SHAPE: &'static str;

    fn from_text(text: &str) -> Result<Self, Wrong>;

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_str().ok_or(Wrong::Shape).and_then(Self::from_text)
    }
}

/// Why a value is refused.
pub(super) enum Wrong {
    /// It is not of the [`Setting::SHAPE`].
    Shape,
    /// Something more telling, as a whole sentence.
    Because(String),
}

/// A number, size or duration that must not be zero.
#[derive(Debug)]
pub(super) struct Positive<T>(pub(super) T);

/// A list; one value alone is a list too, and text separates values by commas.
#[derive(Debug)]
pub(super) struct OneOrMore<T>(pub(super) Vec<T>);

// === impl Raw ===

impl Raw<'_> {
    pub(super) fn read<T: Setting>(&self) -> Result<T, String> {
        let read = match self {
            Self::Toml(value) => T::from_toml(value),
            Self::Text(text) => T::from_text(text),
        };
        read.map_err(|wrong| match wrong {
            Wrong::Shape => format!("{} is not {}", self.shown(), T::SHAPE),
            Wrong::Because(message) => message,
        })
    }

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
    const SHAPE: &'static str = "true or false";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(Wrong::Shape),
        }
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        value.as_bool().ok_or(Wrong::Shape)
    }
}

impl Setting for usize {
    const SHAPE: &'static str = "a whole number";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.parse().map_err(|_| Wrong::Shape)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = value.as_integer().ok_or(Wrong::Shape)?;
        Self::from_str_radix(number.as_str(), number.radix()).map_err(|_| Wrong::Shape)
    }
}

impl Setting for String {
    const SHAPE: &'static str = "a text in quotes";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() { Err(Wrong::Because("must not be empty".to_owned())) } else { Ok(text.to_owned()) }
    }
}

impl Setting for PathBuf {
    const SHAPE: &'static str = "a path in quotes";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        String::from_text(text).map(Self::from)
    }
}

impl Setting for Secret {
    const SHAPE: &'static str = "a text in quotes";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        String::from_text(text).map(Self::from)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        // An unquoted number may well be the password: the value is not repeated.
        let text = value.as_str().ok_or_else(|| Wrong::Because("must be a text in quotes".to_owned()))?;
        Self::from_text(text)
    }
}

impl Setting for Duration {
    const SHAPE: &'static str = "a duration; write for example \"60s\" or \"10m\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        units::parse_duration(text).ok_or(Wrong::Shape)
    }
}

impl Setting for Size {
    const SHAPE: &'static str = "a size; write for example \"20GiB\" or \"500MB\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        units::parse_size(text).map_err(|wrong| match wrong {
            NoSize::Shape => Wrong::Shape,
            NoSize::TooLarge => too_large(&format!("\"{text}\"")),
        })
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value.as_integer() {
            Some(number) => {
                let read = u64::from_str_radix(number.as_str(), number.radix());
                read.map(Size).map_err(|error| match error.kind() {
                    IntErrorKind::PosOverflow => too_large(number.as_str()),
                    _ => Wrong::Shape,
                })
            }
            None => value.as_str().ok_or(Wrong::Shape).and_then(Self::from_text),
        }
    }
}

fn too_large(size: &str) -> Wrong {
    Wrong::Because(format!("{size} is too large; the largest size is {}", units::LARGEST_SIZE))
}

impl Setting for ListenAddr {
    const SHAPE: &'static str = "an address to listen on; write for example \"127.0.0.1:5000\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.parse().map_err(|_| Wrong::Shape)
    }
}

impl Setting for LogFormat {
    const SHAPE: &'static str = "a log format; write \"text\" or \"json\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Self::parse(text).ok_or(Wrong::Shape)
    }
}

impl Setting for Pin {
    const SHAPE: &'static str = "a pattern of an upstream's images; write for example \"docker.io/library/*:3.*\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Self::parse(text).ok_or(Wrong::Shape)
    }
}

impl Setting for Namespace {
    const SHAPE: &'static str = "a pattern of repository names; write for example \"team/**\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Self::parse(text).ok_or(Wrong::Shape)
    }
}

impl Setting for OnDenied {
    const SHAPE: &'static str = "a way to treat refusals; write \"stale\" or \"deny\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        match text {
            "stale" => Ok(Self::Stale),
            "deny" => Ok(Self::Deny),
            _ => Err(Wrong::Shape),
        }
    }
}

impl<T: Setting + Default + PartialEq> Setting for Positive<T> {
    const SHAPE: &'static str = T::SHAPE;

    fn from_text(text: &str) -> Result<Self, Wrong> {
        T::from_text(text).and_then(Self::new)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        T::from_toml(value).and_then(Self::new)
    }
}

impl<T: Setting> Setting for OneOrMore<T> {
    const SHAPE: &'static str = T::SHAPE;

    fn from_text(text: &str) -> Result<Self, Wrong> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Ok(Self(parts.map(|part| item(&Raw::Text(part))).collect::<Result<_, _>>()?))
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value.as_array() {
            Some(items) => {
                Ok(Self(items.iter().map(|value| item(&Raw::Toml(value.get_ref()))).collect::<Result<_, _>>()?))
            }
            None => Ok(Self(vec![T::from_toml(value)?])),
        }
    }
}

impl<T: Default + PartialEq> Positive<T> {
    fn new(value: T) -> Result<Self, Wrong> {
        if value == T::default() { Err(Wrong::Because("must be more than 0".to_owned())) } else { Ok(Self(value)) }
    }
}

/// An item of a list: its error shows the item, not the list.
fn item<T: Setting>(raw: &Raw<'_>) -> Result<T, Wrong> {
    raw.read().map_err(Wrong::Because)
}
