//! Artifacts: manifests with a subject.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::image::{Content, OCI_INDEX, OCI_MANIFEST};

pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The empty object: config and only layer of an artifact that consists of annotations.
pub fn empty() -> Content {
    Content::new(EMPTY, "{}")
}

/// An artifact of this type with this subject. Its only blob is [`empty`].
pub fn about(subject: &Content, artifact_type: &str, annotations: &Value) -> Content {
    let fields = json!({"artifactType": artifact_type, "annotations": annotations});
    manifest_about(subject, OCI_MANIFEST, &fields)
}

/// A manifest or index with this subject and these additional fields.
pub fn manifest_about(subject: &Content, media_type: &str, fields: &Value) -> Content {
    let mut manifest = json!({"schemaVersion": 2, "mediaType": media_type, "subject": subject.descriptor()});
    if media_type == OCI_INDEX {
        manifest["manifests"] = json!([]);
    } else {
        manifest["config"] = empty().descriptor();
        manifest["layers"] = json!([empty().descriptor()]);
    }
    for (name, value) in fields.as_object().into_iter().flatten() {
        manifest[name] = value.clone();
    }
    Content::json(media_type, &manifest)
}

/// The same bytes under their sha512 digest.
pub fn by_sha512(content: &Content) -> Content {
    let hex: String = Sha512::digest(&content.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Content { digest: format!("sha512:{hex}"), ..content.clone() }
}

/// The tag under which clients store referrers for registries without the referrers API.
pub fn fallback_tag(subject: &Content) -> String {
    let (algorithm, hex) = subject.digest.split_once(':').expect("a digest");
    format!("{algorithm}-{}", &hex[..64])
}
