//! The miss engine. It fetches missing content once, verifies it, stores it, and streams it to all clients that
//! requested it in the meantime.
//!
//! - A request for a **blob** follows the one *fill* of its digest (`fill`), and starts it if none is running. A fill
//!   is a detached task with one spool file. Its states are those of a shared fetch in other caches: `Queued`,
//!   `Requesting`, `Readable` (receiving, verified, committed) and `Failed`. It publishes the mark, up to which its
//!   file may be read. Each follower reads the file at its own position. No client waits for another one.
//! - A request for a **tag**, a **manifest**, a list of **referrers** or a proof joins the one *flight* for it
//!   (`flight`). The flight sends one request to the upstream, and all requests get its result.
//! - Bytes come from a `source::BlobSource`, which is an upstream today. Fills and bypasses use only this trait.
//! - Access is checked first. A digest is readable in a mirrored repository if a manifest that was served there
//!   refers to it, or if the upstream confirmed it to that repository's credentials (`proof`).
//! - Content that cannot be stored, and ranges far ahead of a fill, are transferred past the store (`bypass`).
//!
//! Imports lead one way: `blob`, `tag`, `manifest`, `referrers`, `tag_list` -> `engine` -> `fill`, `bypass`, `proof` ->
//! `context`, `source` -> the rest. The module does not depend on the HTTP server.

mod ask;
mod blob;
mod bypass;
mod confirm_tag;
mod content;
mod context;
mod engine;
mod error;
mod fill;
mod flight;
mod freshness;
mod held_back_tail;
mod large_documents;
mod manifest;
mod memory;
mod next_link;
mod notes;
mod proof;
mod referrers;
mod served;
mod slots;
mod source;
mod tag;
mod tag_list;
mod visibility;

pub use blob::BlobRequest;
pub use content::{Content, ContentBody, ContentStream};
pub use engine::{PullRequest, Puller};
pub use error::{ContentError, PullError};
pub use fill::Follower;
pub use freshness::{MAX_SCARCE_TTL, TagFreshness};
pub use large_documents::{DocumentTurn, LARGE_DOCUMENT_BYTES, LargeDocuments};
pub use served::Served;
pub use tag_list::{TagList, TagPage};
