//! The operation that a request asks for. This is the only table of the methods of each endpoint.

use http::Method;

use crate::oci::Endpoint;

/// The methods of endpoints, in the order of `Allow`.
const METHODS: [Method; 6] = [Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::PUT, Method::DELETE];

/// An operation at an endpoint, with the last component of the path if the operation needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Ping,
    ReadManifest(&'a str),
    ReadBlob(&'a str),
    Rare(RareOperation<'a>),
}

/// The operations other than pings and reads of content. They are not on the hit path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RareOperation<'a> {
    ListRepositories,
    ListTags,
    ListReferrers(&'a str),
    PutManifest(&'a str),
    DeleteManifest(&'a str),
    DeleteBlob(&'a str),
    StartUpload,
    AppendToUpload(&'a str),
    FinishUpload(&'a str),
    UploadStatus(&'a str),
    CancelUpload(&'a str),
    /// `OPTIONS`, which browsers send before a request to another site (CORS).
    NameMethods,
}

impl<'a> Operation<'a> {
    /// `None` if the endpoint does not have the method.
    pub(super) fn of(method: &Method, endpoint: &'a Endpoint) -> Option<Self> {
        use RareOperation as Rare;
        Some(match (method, endpoint) {
            (&Method::GET | &Method::HEAD, Endpoint::Manifest(reference)) => Self::ReadManifest(reference),
            (&Method::GET | &Method::HEAD, Endpoint::Blob(digest)) => Self::ReadBlob(digest),
            (&Method::GET | &Method::HEAD, Endpoint::Base) => Self::Ping,
            (&Method::GET | &Method::HEAD, Endpoint::Catalog) => Self::Rare(Rare::ListRepositories),
            (&Method::GET | &Method::HEAD, Endpoint::Tags) => Self::Rare(Rare::ListTags),
            (&Method::GET | &Method::HEAD, Endpoint::Referrers(subject)) => Self::Rare(Rare::ListReferrers(subject)),
            (&Method::GET | &Method::HEAD, Endpoint::Upload(id)) => Self::Rare(Rare::UploadStatus(id)),
            (&Method::PUT, Endpoint::Manifest(reference)) => Self::Rare(Rare::PutManifest(reference)),
            (&Method::DELETE, Endpoint::Manifest(reference)) => Self::Rare(Rare::DeleteManifest(reference)),
            (&Method::DELETE, Endpoint::Blob(digest)) => Self::Rare(Rare::DeleteBlob(digest)),
            (&Method::POST, Endpoint::Uploads) => Self::Rare(Rare::StartUpload),
            (&Method::PATCH, Endpoint::Upload(id)) => Self::Rare(Rare::AppendToUpload(id)),
            (&Method::PUT, Endpoint::Upload(id)) => Self::Rare(Rare::FinishUpload(id)),
            (&Method::DELETE, Endpoint::Upload(id)) => Self::Rare(Rare::CancelUpload(id)),
            (&Method::OPTIONS, _) => Self::Rare(Rare::NameMethods),
            _ => return None,
        })
    }
}

/// The methods of an endpoint as the value of an `Allow` header (RFC 9110, section 10.2.1).
pub(super) fn allowed_methods(endpoint: &Endpoint) -> String {
    let allowed = METHODS.iter().filter(|method| Operation::of(method, endpoint).is_some());
    allowed.map(Method::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_names_the_methods_of_each_endpoint() {
        let text = String::new;
        for (endpoint, allowed) in [
            (Endpoint::Base, "GET, HEAD"),
            (Endpoint::Catalog, "GET, HEAD"),
            (Endpoint::Tags, "GET, HEAD"),
            (Endpoint::Referrers(text()), "GET, HEAD"),
            (Endpoint::Manifest(text()), "GET, HEAD, PUT, DELETE"),
            (Endpoint::Blob(text()), "GET, HEAD, DELETE"),
            (Endpoint::Uploads, "POST"),
            (Endpoint::Upload(text()), "GET, HEAD, PATCH, PUT, DELETE"),
        ] {
            assert_eq!(allowed_methods(&endpoint), allowed, "{endpoint:?}");
            assert_eq!(Operation::of(&Method::OPTIONS, &endpoint), Some(Operation::Rare(RareOperation::NameMethods)));
            assert_eq!(Operation::of(&Method::TRACE, &endpoint), None);
        }
    }
}
