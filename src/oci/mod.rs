//! The distribution protocol as types: digests, names, tags, routes, manifests and ranges.
//!
//! This module does no I/O and has no async code. Its values are valid by construction: text is parsed once, where a
//! request or a file is read.

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

/// The `Warning` header of a response that was served from the cache because its upstream could not be reached (RFC
/// 7234, section 5.5; distribution-spec, "Warnings"). A Roadstead that has another one as its upstream compares the
/// complete value.
pub const STALE_WARNING: &str = "299 - \"the upstream cannot be asked; this is what it last said\"";
