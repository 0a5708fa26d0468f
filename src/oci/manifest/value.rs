//! The names and the plain values of a manifest's fields. A value may have any type.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Largest text in bytes of a field that is used. Media types and digests are shorter.
const MAX_TEXT_BYTES: usize = 255;

/// A field that is used, of a manifest or of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    SchemaVersion,
    MediaType,
    Config,
    Layers,
    Manifests,
    Blobs,
    /// The layers of a manifest of schema version 1.
    FsLayers,
    Subject,
    Digest,
    Size,
    Other,
}

/// The fields that were seen so far in one object.
#[derive(Default)]
pub(super) struct SeenFields(u16);

/// Any JSON value, reduced to the part that is used.
pub(super) enum Scalar {
    /// `None` if it is longer than [`MAX_TEXT_BYTES`].
    Text(Option<String>),
    /// `None` if it is not from 0 to 2^64 - 1.
    Number(Option<u64>),
    /// A number with a fraction or an exponent; `None` if its value is not a whole number from 0 to 2^64 - 1.
    Float(Option<u64>),
    Null,
    Other,
}

// === impl Field ===

impl Field {
    fn named(name: &[u8]) -> Self {
        const NAMES: [(&str, Field); 10] = [
            ("schemaVersion", Field::SchemaVersion),
            ("mediaType", Field::MediaType),
            ("config", Field::Config),
            ("layers", Field::Layers),
            ("manifests", Field::Manifests),
            ("blobs", Field::Blobs),
            ("fsLayers", Field::FsLayers),
            ("subject", Field::Subject),
            ("digest", Field::Digest),
            ("size", Field::Size),
        ];
        let found = NAMES.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name));
        found.map_or(Self::Other, |(_, field)| *field)
    }
}

impl SeenFields {
    /// Whether the field was seen before.
    pub(super) fn again(&mut self, field: Field) -> bool {
        let bit = 1 << field as u16;
        let again = field != Field::Other && self.0 & bit != 0;
        self.0 |= bit;
        again
    }
}

pub(super) struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        // As bytes, so that a name with an unpaired surrogate is no error.
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Field, E> {
        Ok(Field::named(name))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Field, E> {
        Ok(Field::named(name.as_bytes()))
    }
}

/// Reads the values of other types than the expected ones by `$other`.
macro_rules! other_values {
    ($($visit:ident: $kind:ty),*) => {
        $(fn $visit<E: Error>(self, _value: $kind) -> Result<Self::Value, E> {
            self.other()
        })*
    };
}

pub(super) use other_values;

pub(super) struct AnyScalar;

impl<'de> DeserializeSeed<'de> for AnyScalar {
    type Value = Scalar;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl AnyScalar {
    fn other<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Other)
    }
}

impl<'de> Visitor<'de> for AnyScalar {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text((text.len() <= MAX_TEXT_BYTES).then(|| text.to_owned())))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(Some(number)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(number.try_into().ok()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar, E> {
        let is_whole = number.fract() == 0.0 && (0.0..u64::MAX as f64).contains(&number);
        // Exact: the value is whole and in range.
        Ok(Scalar::Float(is_whole.then_some(number as u64)))
    }

    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.other()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.other()
    }

    other_values!(visit_bool: bool);
}
