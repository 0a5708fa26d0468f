//! The protocol as types: what a digest, a name, a tag, a route, a manifest and a range are.
//!
//! No I/O and no async here. A value of one of these types is valid by construction: text is parsed once, at the edge.

mod digest;
mod error;
mod manifest;
pub mod media_type;
mod name;
mod range;
mod reference;
mod referrer;
mod repo;
mod route;

pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use error::ErrorCode;
pub use manifest::{Child, Manifest, ManifestError};
pub use name::{NameError, RepoName};
pub use range::{ByteRange, RangeSet, Selected};
pub use reference::{Reference, ReferenceError, Tag, TagError};
pub use referrer::{Referrer, ReferrerIndex};
pub use repo::{RepoId, Scope, UpstreamName};
pub use route::{Endpoint, Route, RouteError};

/// The `Warning` on what an upstream could not be asked about (RFC 7234, 5.5, as the distribution-spec uses it). A Roadstead
/// behind another one knows it by its text.
pub const STALE_WARNING: &str = "299 - \"the upstream cannot be asked; this is what it last said\"";
