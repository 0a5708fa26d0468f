//! Routes: which endpoint of the distribution API a path names (distribution-spec, "Endpoints").
//!
//! Only two kinds of percent-encoded characters are decoded: those that mean the same with and without the encoding
//! (RFC 3986, section 2.3), and the colon of a digest. A router that decodes `%2F` would allow a slash inside a name,
//! and a router with wildcards has none in the middle of a path. Names stay text here, because their first component
//! may be the host of an upstream.

/// Components of a usual path, for the capacity of a list.
const USUAL_COMPONENTS: usize = 8;

/// A parsed path: `[/<prefix>]/v2/<name>/<endpoint>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The component before `/v2`, if present. Docker and containerd send one for a mirror URL that has a path.
    pub prefix: Option<String>,
    /// The repository name as sent, possibly with the host of an upstream in front. Empty for [`Endpoint::Catalog`]. For
    /// [`Endpoint::Base`] it is the component between two `v2`, and usually empty.
    pub name: String,
    /// The endpoint.
    pub endpoint: Endpoint,
}

/// An endpoint, with the last component of the path as sent. Handlers parse it, as its error depends on the endpoint.
/// The numbers are those of the distribution-spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /v2/` (end-1).
    Base,
    /// `GET /v2/_catalog`, of distribution; not in the specification.
    Catalog,
    /// `GET …/tags/list` (end-8).
    Tags,
    /// `…/manifests/<reference>` (end-3, end-7, end-9), with a tag or digest.
    Manifest(String),
    /// `…/blobs/<digest>` (end-2, end-10).
    Blob(String),
    /// `POST …/blobs/uploads/` (end-4, end-11).
    Uploads,
    /// `…/blobs/uploads/<session>` (end-5, end-6, end-13, end-14).
    Upload(String),
    /// `…/referrers/<digest>` (end-12).
    Referrers(String),
}

/// Why a path names no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The path contains an encoded character that may mean something else, or an empty, `.` or `..` component.
    #[error("the path has a percent-encoded special character, an empty component or a '.' or '..' component")]
    Malformed,
    #[error("the path is not an endpoint of the registry API, which is below /v2/")]
    Unknown,
}

impl Route {
    /// Parses the path of a request target, without its query and not percent-decoded.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        match path.contains('%') {
            false => Self::parse_decoded(path),
            true => Self::parse_decoded(&decode(path).ok_or(RouteError::Malformed)?),
        }
    }

    fn parse_decoded(path: &str) -> Result<Self, RouteError> {
        let path = path.strip_prefix('/').filter(|path| !path.is_empty()).ok_or(RouteError::Unknown)?;
        let (path, trailing_slash) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let mut parts = Vec::with_capacity(USUAL_COMPONENTS);
        parts.extend(path.split('/'));
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
            return Err(RouteError::Malformed);
        }
        let (prefix, rest) = match parts.as_slice() {
            ["v2", rest @ ..] => (None, rest),
            [prefix, "v2", rest @ ..] => (Some((*prefix).to_owned()), rest),
            _ => return Err(RouteError::Unknown),
        };
        let (name, endpoint) = match rest {
            // Docker asks for `/v2/` below the URL of a mirror, which may have a path.
            [] => (rest, Endpoint::Base),
            [_, "v2"] => (&rest[..1], Endpoint::Base),
            ["_catalog"] if !trailing_slash => (&rest[..0], Endpoint::Catalog),
            [name @ .., "blobs", "uploads"] => (name, Endpoint::Uploads),
            _ if trailing_slash => return Err(RouteError::Unknown),
            [name @ .., "tags", "list"] => (name, Endpoint::Tags),
            [name @ .., "blobs", "uploads", session] => (name, Endpoint::Upload((*session).to_owned())),
            [name @ .., "manifests", reference] => (name, Endpoint::Manifest((*reference).to_owned())),
            [name @ .., "blobs", digest] => (name, Endpoint::Blob((*digest).to_owned())),
            [name @ .., "referrers", digest] => (name, Endpoint::Referrers((*digest).to_owned())),
            _ => return Err(RouteError::Unknown),
        };
        if name.is_empty() && !matches!(endpoint, Endpoint::Base | Endpoint::Catalog) {
            return Err(RouteError::Unknown);
        }
        Ok(Self { prefix, name: name.join("/"), endpoint })
    }
}

/// Decodes each encoded character once; `None` if one may mean something else than the character itself.
fn decode(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        let is_hex = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(code, 16).ok().filter(|_| is_hex)?;
        if !byte.is_ascii_alphanumeric() && !b"-._~:".contains(&byte) {
            return None;
        }
        decoded.push(byte.into());
        decoded.push_str(rest);
    }
    Some(decoded)
}

impl Endpoint {
    /// The `handler` label in metrics, with the values that distribution uses.
    pub fn handler(&self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Tags => "tags",
            Self::Manifest(_) => "manifest",
            Self::Blob(_) => "blob",
            Self::Uploads => "blob_upload",
            Self::Upload(_) => "blob_upload_chunk",
            Self::Referrers(_) => "referrers",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(path: &str) -> (Option<String>, String, Endpoint) {
        let Route { prefix, name, endpoint } = Route::parse(path).unwrap();
        (prefix, name, endpoint)
    }

    #[test]
    fn every_endpoint_is_recognised() {
        let route = |name: &str, endpoint| (None, name.to_owned(), endpoint);
        assert_eq!(parsed("/v2/"), route("", Endpoint::Base));
        assert_eq!(parsed("/v2"), route("", Endpoint::Base));
        assert_eq!(parsed("/v2/_catalog"), route("", Endpoint::Catalog));
        assert_eq!(parsed("/v2/a/b/tags/list"), route("a/b", Endpoint::Tags));
        assert_eq!(parsed("/v2/a/manifests/v1"), route("a", Endpoint::Manifest("v1".into())));
        assert_eq!(parsed("/v2/a/blobs/sha256:00"), route("a", Endpoint::Blob("sha256:00".into())));
        assert_eq!(parsed("/v2/a/blobs/uploads/"), route("a", Endpoint::Uploads));
        assert_eq!(parsed("/v2/a/blobs/uploads"), route("a", Endpoint::Uploads));
        assert_eq!(parsed("/v2/a/blobs/uploads/x-1"), route("a", Endpoint::Upload("x-1".into())));
        assert_eq!(parsed("/v2/a/referrers/sha256:00"), route("a", Endpoint::Referrers("sha256:00".into())));
    }

    #[test]
    fn prefix_and_host_in_the_name_are_separate() {
        let (prefix, name, _) = parsed("/docker.io/v2/library/alpine/manifests/3");
        assert_eq!((prefix.as_deref(), name.as_str()), (Some("docker.io"), "library/alpine"));
        let (prefix, name, _) = parsed("/v2/docker.io/v2/library/alpine/manifests/3");
        assert_eq!((prefix, name.as_str()), (None, "docker.io/v2/library/alpine"));
    }

    #[test]
    fn a_ping_of_a_mirror_url_with_a_path_is_recognised() {
        for path in ["/docker.io/v2/", "/docker.io/v2"] {
            assert_eq!(parsed(path), (Some("docker.io".into()), String::new(), Endpoint::Base), "{path}");
        }
        for (path, name) in [
            ("/v2/docker.io/v2/", "docker.io"),
            ("/v2/docker.io/v2", "docker.io"),
            ("/v2/localhost:5000/v2/", "localhost:5000"),
            ("/v2/quay%2eio/v2/", "quay.io"),
        ] {
            assert_eq!(parsed(path), (None, name.to_owned(), Endpoint::Base), "{path}");
        }
        assert_eq!(parsed("/v2/a/v2/tags/list").1, "a/v2");
        for path in ["/v2/a/b/v2/", "/v2/docker.io/v2/x", "/x/y/v2/"] {
            assert_eq!(Route::parse(path), Err(RouteError::Unknown), "{path}");
        }
    }

    #[test]
    fn unreserved_characters_and_colons_may_be_encoded() {
        for (path, endpoint) in [
            ("/v2/library/alpine/manifests/sha256%3A00", Endpoint::Manifest("sha256:00".into())),
            ("/v2/library/alpine/blobs/sha256%3a00", Endpoint::Blob("sha256:00".into())),
            ("/v2/librar%79/%61lpine/manifests/v1%2E0%2d%5Frc", Endpoint::Manifest("v1.0-_rc".into())),
            ("/%76%32/library/alpine/tags/l%69st", Endpoint::Tags),
            ("/v2/library/alpine/referrers/sha256%3A00", Endpoint::Referrers("sha256:00".into())),
        ] {
            assert_eq!(parsed(path), (None, "library/alpine".to_owned(), endpoint), "{path}");
        }
        assert_eq!(parsed("/v2/localhost%3A5000/a/tags/list").1, "localhost:5000/a");
        // Once only.
        assert_eq!(Route::parse("/v2/a/manifests/sha256%253A00"), Err(RouteError::Malformed));
    }

    #[test]
    fn repository_name_may_contain_endpoint_words() {
        assert_eq!(parsed("/v2/a/manifests/tags/list").1, "a/manifests");
        assert_eq!(parsed("/v2/tags/manifests/list").1, "tags");
        assert_eq!(parsed("/v2/blobs/blobs/sha256:1").1, "blobs");
    }

    #[test]
    fn escapes_and_dot_components_are_malformed() {
        for path in [
            "/v2/a%2Fb/manifests/x",
            "/v2//manifests/x",
            "/v2/a//b/manifests/x",
            "/v2/../etc/manifests/x",
            "/v2/a/./b/tags/list",
            "/v2/a/manifests/..",
            "/v2/a%2fb/manifests/x",
            "/v2/%2e%2e/etc/manifests/x",
            "/v2/a/%2E/tags/list",
            "/v2/a/manifests/.%2e",
            "/v2/a/manifests/v%001",
            "/v2/a/manifests/v%5c1",
            "/v2/a/manifests/v%201",
            "/v2/a/manifests/v%2B1",
            "/v2/a/manifests/%c3%bc",
            "/v2/a/manifests/v%",
            "/v2/a/manifests/v%3",
            "/v2/a/manifests/v%+3",
            "/v2/a/manifests/v%zz",
            "//v2/",
        ] {
            assert_eq!(Route::parse(path), Err(RouteError::Malformed), "{path}");
        }
        for path in [
            "",
            "*",
            "/v3/",
            "/x/y/v2/",
            "/v2/a",
            "/v2/manifests/x",
            "/v2/a/manifests/x/",
            "/v2/tags/list",
            "/v2/_catalog/",
        ] {
            assert!(matches!(Route::parse(path), Err(RouteError::Unknown)), "{path}");
        }
        assert_eq!(Route::parse("/"), Err(RouteError::Unknown));
    }

    proptest! {
        #[test]
        fn formatted_path_parses_back(
            prefix in prop::option::of("[a-uw-z][a-z.]{0,9}"),
            name in "[a-z0-9]{1,5}(/(v2|tags|blobs|uploads|manifests|[a-z0-9]{1,5})){0,3}",
            last in "[a-zA-Z0-9_:][a-zA-Z0-9_:.-]{0,20}",
        ) {
            let start = prefix.as_ref().map_or(String::new(), |prefix| format!("/{prefix}"));
            for (rest, endpoint) in [
                ("tags/list".to_owned(), Endpoint::Tags),
                (format!("manifests/{last}"), Endpoint::Manifest(last.clone())),
                (format!("blobs/{last}"), Endpoint::Blob(last.clone())),
                ("blobs/uploads/".to_owned(), Endpoint::Uploads),
                (format!("blobs/uploads/{last}"), Endpoint::Upload(last.clone())),
                (format!("referrers/{last}"), Endpoint::Referrers(last.clone())),
            ] {
                if endpoint == Endpoint::Blob("uploads".to_owned()) {
                    continue;
                }
                let found = Route::parse(&format!("{start}/v2/{name}/{rest}"));
                prop_assert_eq!(found, Ok(Route { prefix: prefix.clone(), name: name.clone(), endpoint }));
            }
        }

        #[test]
        fn no_input_panics(path in "(/|v2|blobs|uploads|manifests|tags|list|a|%|\\.|:){0,14}") {
            let _ = Route::parse(&path);
        }
    }
}
