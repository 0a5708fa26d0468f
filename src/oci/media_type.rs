//! Media types that the registry itself interprets (image-spec, media-types.md).

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// The four types that nearly all manifests have.
pub const MANIFESTS: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
/// The type of a blob.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// Longest media type that is stored or sent, in bytes (RFC 6838, section 4.2, allows 127 + 1 + 127).
const MAX_MEDIA_TYPE_BYTES: usize = 255;

/// The media type in lower case and without parameters. Malformed parameters do not matter.
///
/// `None` if the text before the first `;` is not a media type or is longer than 255 bytes.
pub fn essence(value: &str) -> Option<String> {
    let essence = value.split(';').next().unwrap_or_default().trim();
    let token =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    let (kind, subtype) = essence.split_once('/')?;
    (essence.len() <= MAX_MEDIA_TYPE_BYTES && token(kind) && token(subtype)).then(|| essence.to_ascii_lowercase())
}

/// As [`essence`], for the type of a manifest, which must begin with `application/`. With another type, a browser could
/// display or run the content.
pub fn of_manifest(value: &str) -> Option<String> {
    essence(value).filter(|essence| essence.starts_with("application/"))
}

/// Whether a manifest of this type lists other manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether a layer of this type may be absent from the registry, because clients fetch it from elsewhere.
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invalid_media_types_are_rejected() {
        assert_eq!(essence("Application/JSON; charset=utf-8").as_deref(), Some("application/json"));
        assert_eq!(essence(OCI_INDEX).as_deref(), Some(OCI_INDEX));
        for bad in ["", "text", "/", "a/", "/b", "a/b c", "a/b\nx", "a/b/c", "*/*"] {
            assert_eq!(essence(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn malformed_parameters_are_dropped() {
        for parameters in [";", "; charset", "; a=\"open", "; a=b; =", ";;"] {
            assert_eq!(essence(&format!("a/b{parameters}")).as_deref(), Some("a/b"), "{parameters:?}");
        }
    }

    proptest! {
        #[test]
        fn essence_is_idempotent_and_valid_in_a_header(
            text in prop_oneof![".{0,40}", "[ -~]{0,20}/[ -~]{0,20}", "[a-zA-Z0-9.+-]{1,130}/[a-zA-Z0-9.+-]{1,130}( ?;.{0,9})?"]
        ) {
            if let Some(found) = essence(&text) {
                prop_assert_eq!(essence(&found), Some(found.clone()));
                prop_assert_eq!(essence(&format!(" {found} ; charset=utf-8")), Some(found.clone()));
                prop_assert!(http::HeaderValue::try_from(found.as_str()).is_ok() && found.len() <= MAX_MEDIA_TYPE_BYTES);
            }
        }
    }
}
