//! The miss engine: content that is not stored is fetched once, verified, stored, and streamed to all clients that requested
//! it meanwhile.
//!
//! - A request for a **blob** follows the one *fill* of its digest (`fill`), and starts it if none is running. A fill is a
//!   detached task with one spool file. Its states are those of a shared fetch in other caches: `Queued`, `Requesting`,
//!   `Readable` (receiving, verified, committed) and `Failed`. It publishes up to where its file may be read (the mark), and
//!   each follower reads the file at a position of its own. No client waits for another one.
//! - A request for a **tag**, a **manifest**, a list of **referrers** or a proof of membership joins the one *flight* for it
//!   (`flight`): many requests, one question to the upstream, one result.
//! - Bytes come from a `source::BlobSource`, which is an upstream today. Fills and bypasses know nothing else of it.
//! - The right to read is decided first: a digest is readable in a mirrored repository if a manifest served there refers to
//!   it, or if the upstream, asked with that repository's credentials, said so once (`proof`).
//! - What cannot be stored, and ranges far ahead of a fill, pass by the store (`bypass`).
//!
//! Imports lead one way: `blob`, `tag`, `manifest`, `referrers`, `tag_list` -> `engine` -> `fill`, `bypass`, `proof` ->
//! `context`, `source` -> the rest. The module knows no HTTP towards clients.

mod ask;
mod blob;
mod bypass;
mod content;
mod context;
mod engine;
mod error;
mod fill;
mod flight;
mod freshness;
mod held_back_tail;
mod manifest;
mod memory;
mod next_link;
mod proof;
mod referrers;
mod served;
mod slots;
mod source;
mod tag;
mod tag_list;

pub use blob::BlobRequest;
pub use content::{Content, ContentBody, ContentStream};
pub use engine::{PullRequest, Puller};
pub use error::{ContentError, PullError};
pub use freshness::TagFreshness;
pub use served::Served;
pub use tag_list::{TagList, TagPage};
