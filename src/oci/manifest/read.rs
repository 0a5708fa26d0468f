//! Reads a manifest from JSON as a stream. Only valid references become objects, so that memory stays below the size of
//! the manifest.
//!
//! A mirrored manifest is read as Docker and containerd read it, with Go's `encoding/json`: names of fields match in
//! any case, `null` is an absent value, and bytes that are not UTF-8 are replaced. A field of a wrong type counts as
//! absent, and a reference without a digest is left out. The manifest is passed on nevertheless, because its bytes have
//! the right digest. A pushed manifest must not have such faults.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::{AnyScalar, Field, FieldName, Scalar, SeenFields, other_values};
use super::{Child, Manifest, ManifestError};
use crate::oci::{Digest, DigestError, digest, media_type};

/// Largest number of references with an unsupported digest algorithm that are kept for an error message.
const MAX_UNSUPPORTED: usize = 50;

/// The origin of a manifest, which decides which faults are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An upstream, or the store.
    Mirror,
    Push,
}

/// The result of reading a manifest.
#[derive(Default)]
pub(super) struct ReadManifest {
    pub(super) manifest: Manifest,
    pub(super) schema_version: Option<u64>,
    /// Whether a field is present that only manifests have.
    pub(super) has_references: bool,
    /// Whether the field of an artifact manifest's references, or of a manifest's subject, is present.
    pub(super) has_artifact: bool,
    /// Whether the layers of schema version 1 are present.
    pub(super) has_fs_layers: bool,
}

/// Reads a manifest.
///
/// # Errors
/// For bytes that are not one JSON object. In a push, also for a field of a wrong type, a field that appears twice, and
/// a reference without a valid digest; reading ends there.
pub(super) fn read(bytes: &[u8], origin: Origin) -> Result<ReadManifest, ManifestError> {
    // serde also accepts a JSON array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ManifestError::Shape);
    }
    let text = match (str::from_utf8(bytes), origin) {
        (Ok(text), _) => Cow::Borrowed(text),
        (Err(_), Origin::Push) => return Err(ManifestError::Encoding),
        (Err(_), Origin::Mirror) => String::from_utf8_lossy(bytes),
    };
    let mut reader = Reader { origin, read: ReadManifest::default(), failure: None };
    let mut json = serde_json::Deserializer::from_str(&text);
    match json.deserialize_map(Document(&mut reader)).and_then(|()| json.end()) {
        Ok(()) => Ok(reader.read),
        Err(_) => Err(reader.failure.unwrap_or(ManifestError::Shape)),
    }
}

/// A descriptor (image-spec, descriptor.md).
#[derive(Default)]
struct Descriptor {
    digest: Option<String>,
    size: Option<u64>,
    media_type: Option<String>,
}

/// Which field of a manifest a descriptor is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Blob,
    /// The `manifests` of an index.
    Index,
    Subject,
}

struct Reader {
    origin: Origin,
    read: ReadManifest,
    /// Why reading ended early, unless the JSON itself is at fault.
    failure: Option<ManifestError>,
}

// === impl ReadManifest ===

impl ReadManifest {
    /// Whether this is schema version 1. Clients ignore the version of a manifest that has the fields or the media type
    /// of another schema.
    pub(super) fn is_schema_1(&self) -> bool {
        let own_type = self.own_type();
        let is_other = self.has_references
            || self.has_artifact
            || own_type.as_deref().is_some_and(|own| media_type::MANIFESTS.contains(&own));
        self.schema_version == Some(1) && !is_other
    }

    /// Whether a field says that this is a manifest. An error or a status as JSON has none.
    pub(super) fn is_recognizable(&self) -> bool {
        let names_manifest = |own: &str| own.contains(".manifest.") || own.contains(".index.");
        self.has_references
            || self.has_artifact
            || self.has_fs_layers
            || self.schema_version.is_some()
            || self.own_type().as_deref().is_some_and(names_manifest)
    }

    fn own_type(&self) -> Option<String> {
        self.manifest.media_type.as_deref().and_then(media_type::of_manifest)
    }
}

// === impl Reader ===

impl Reader {
    fn is_push(&self) -> bool {
        self.origin == Origin::Push
    }

    /// Ends reading with `failure`.
    fn fail<E: Error>(&mut self, failure: ManifestError) -> E {
        self.failure = Some(failure);
        E::custom("the manifest is refused")
    }

    /// Handles a value of a wrong type: an error in a push, otherwise treated as absent.
    fn skip_wrong_type<E: Error>(&mut self) -> Result<(), E> {
        if self.is_push() { Err(self.fail(ManifestError::Shape)) } else { Ok(()) }
    }

    fn next_field<'de, A: MapAccess<'de>>(
        &mut self,
        map: &mut A,
        seen: &mut SeenFields,
    ) -> Result<Option<Field>, A::Error> {
        let field = map.next_key_seed(FieldName)?;
        if self.is_push() && field.is_some_and(|field| seen.again(field)) {
            return Err(self.fail(ManifestError::Shape));
        }
        Ok(field)
    }

    fn text<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<String>, A::Error> {
        match map.next_value_seed(AnyScalar)? {
            // A longer text is not valid in any field that is used.
            Scalar::Text(text) => Ok(Some(text.unwrap_or_default())),
            Scalar::Null => Ok(None),
            Scalar::Number(_) | Scalar::Float(_) | Scalar::Other => self.skip_wrong_type().map(|()| None),
        }
    }

    fn number<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Option<u64>, A::Error> {
        match map.next_value_seed(AnyScalar)? {
            Scalar::Number(Some(number)) => Ok(Some(number)),
            Scalar::Null => Ok(None),
            Scalar::Float(Some(number)) if !self.is_push() => Ok(Some(number)),
            Scalar::Number(None) | Scalar::Float(_) | Scalar::Text(_) | Scalar::Other => {
                self.skip_wrong_type().map(|()| None)
            }
        }
    }

    fn add<E: Error>(&mut self, descriptor: Descriptor, place: Place) -> Result<(), E> {
        let text = descriptor.digest.unwrap_or_default();
        let parsed: Digest = match text.parse() {
            Ok(parsed) => parsed,
            Err(DigestError::Algorithm) if digest::is_digest_grammar(&text) => {
                let unsupported = &mut self.read.manifest.unsupported;
                if place != Place::Subject && unsupported.len() < MAX_UNSUPPORTED {
                    unsupported.push(text);
                }
                return Ok(());
            }
            Err(_) if self.is_push() => return Err(self.fail(ManifestError::Digest(text))),
            Err(_) => return Ok(()),
        };
        if place == Place::Subject {
            self.read.manifest.subject = Some(parsed);
            return Ok(());
        }
        let media_type = self.shared(descriptor.media_type.unwrap_or_default());
        let is_manifest = place == Place::Index;
        self.read.manifest.children.push(Child {
            digest: parsed,
            size: descriptor.size,
            is_manifest,
            may_be_blob: !is_manifest || !media_type::MANIFESTS.contains(&&*media_type),
            optional: !is_manifest && media_type::is_nondistributable(&media_type),
            media_type,
        });
        Ok(())
    }

    /// The text, shared with the last reference if that has the same media type. Nearly all layers of a manifest have.
    fn shared(&self, media_type: String) -> Arc<str> {
        match self.read.manifest.children.last() {
            Some(last) if *last.media_type == *media_type => last.media_type.clone(),
            _ => media_type.into(),
        }
    }
}

// === the manifest ===

struct Document<'a>(&'a mut Reader);

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (reader, mut seen) = (self.0, SeenFields::default());
        while let Some(field) = reader.next_field(&mut map, &mut seen)? {
            match field {
                Field::SchemaVersion => {
                    let version = reader.number(&mut map)?;
                    reader.read.schema_version = version.or(reader.read.schema_version);
                }
                Field::MediaType => {
                    let found = reader.text(&mut map)?;
                    let known = reader.read.manifest.media_type.take();
                    reader.read.manifest.media_type = found.or(known);
                }
                Field::Config => map.next_value_seed(AnyDescriptor { reader, place: Place::Blob, in_list: false })?,
                Field::Subject => {
                    map.next_value_seed(AnyDescriptor { reader, place: Place::Subject, in_list: false })?
                }
                Field::Layers | Field::Blobs => map.next_value_seed(AnyList { reader, place: Place::Blob })?,
                Field::Manifests => map.next_value_seed(AnyList { reader, place: Place::Index })?,
                Field::FsLayers | Field::Digest | Field::Size | Field::Other => drop(map.next_value::<IgnoredAny>()?),
            }
            match field {
                Field::Config | Field::Layers | Field::Manifests => reader.read.has_references = true,
                Field::Blobs | Field::Subject => reader.read.has_artifact = true,
                Field::FsLayers => reader.read.has_fs_layers = true,
                _ => {}
            }
        }
        Ok(())
    }
}

// === values of any type ===

/// A list of descriptors, `null`, or a value of a wrong type.
struct AnyList<'a> {
    reader: &'a mut Reader,
    place: Place,
}

impl<'de> DeserializeSeed<'de> for AnyList<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl AnyList<'_> {
    fn other<E: Error>(self) -> Result<(), E> {
        self.reader.skip_wrong_type()
    }
}

impl<'de> Visitor<'de> for AnyList<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { reader, place } = self;
        while list.next_element_seed(AnyDescriptor { reader, place, in_list: true })?.is_some() {}
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.other()
    }

    other_values!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
}

/// A descriptor, `null`, or a value of a wrong type.
struct AnyDescriptor<'a> {
    reader: &'a mut Reader,
    place: Place,
    in_list: bool,
}

impl<'de> DeserializeSeed<'de> for AnyDescriptor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl AnyDescriptor<'_> {
    fn other<E: Error>(self) -> Result<(), E> {
        self.reader.skip_wrong_type()
    }
}

impl<'de> Visitor<'de> for AnyDescriptor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { reader, place, .. } = self;
        let (mut seen, mut descriptor) = (SeenFields::default(), Descriptor::default());
        while let Some(field) = reader.next_field(&mut map, &mut seen)? {
            match field {
                Field::MediaType => descriptor.media_type = reader.text(&mut map)?.or(descriptor.media_type),
                Field::Digest => descriptor.digest = reader.text(&mut map)?.or(descriptor.digest),
                Field::Size => descriptor.size = reader.number(&mut map)?.or(descriptor.size),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        reader.add(descriptor, place)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.in_list { self.other() } else { Ok(()) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.other()
    }

    other_values!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);
}
