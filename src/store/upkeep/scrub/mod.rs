//! The scrub: reads every name and every blob, and finds what is corrupt or missing.
//!
//! Names first, then blobs in the order of their digests, so that a pass can be resumed. A [`ScrubWatch`] is told of each
//! finding; it also limits the speed and ends the scrub. A repair moves corrupt files to `quarantine/`. The next pull fetches
//! cached content again; pushed content is gone until it is pushed again.

mod blobs;
mod names;
mod place;
mod read;

use serde::{Deserialize, Serialize};

use crate::oci::Digest;
use crate::store::error::StoreError;
use crate::store::local::Local;
use crate::store::records::Class;

pub use place::ScrubPlace;
pub(in crate::store) use place::{keep_scrub_place, scrub_place};

/// What one call of the scrub reads.
#[derive(Clone, Debug)]
pub enum ScrubPart {
    /// Tags and links.
    Names,
    /// The blobs after this one, or all.
    Blobs { after: Option<Digest> },
}

/// Follows a scrub. Called on a blocking thread, so it may wait.
pub trait ScrubWatch {
    /// Waits until `bytes` more may be read. False ends the scrub.
    fn may_read(&mut self, bytes: u64) -> bool;

    /// One tag or link was checked.
    fn name_checked(&mut self);

    /// One blob of `bytes` bytes was read, intact or not.
    fn blob_checked(&mut self, digest: &Digest, bytes: u64);

    /// Something is corrupt or missing.
    fn found(&mut self, finding: Finding);
}

/// Something that is corrupt or missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub problem: Problem,
    pub class: Class,
    /// The content that is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The tag that is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// For a name, its repository. For a blob, the first few local repositories that have it.
    pub repositories: Vec<String>,
    /// Whether the file was moved to `quarantine/`.
    pub quarantined: bool,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// A blob does not have the length that it had when it was stored.
    Length,
    /// A blob does not have its digest.
    Digest,
    /// The disk cannot read a file. Names and pushed content stay where they are.
    Unreadable,
    /// The content of a pushed blob or manifest is missing.
    Missing,
    /// The file of a tag or link is corrupt.
    Name,
    /// A pushed manifest refers to something that was deleted from its repository. This is no damage.
    Incomplete,
    /// A pushed tag points to a manifest that was deleted from its repository, and counts as deleted. This is no damage.
    Dangling,
}

impl Problem {
    /// Whether something was lost or corrupted, rather than deleted by a client.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Dangling)
    }
}

/// Scrubs one part. With `repair`, moves corrupt files aside. Whether it came to the end. Blocks.
///
/// # Errors
/// When folders cannot be listed, or descriptors or memory are lacking. A file that the disk cannot read is a finding.
pub(in crate::store) fn scrub(
    local: &Local,
    part: &ScrubPart,
    repair: bool,
    watch: &mut dyn ScrubWatch,
) -> Result<bool, StoreError> {
    if repair {
        local.require_writable()?;
    }
    match part {
        ScrubPart::Names => names::scrub_names(local, repair, watch),
        ScrubPart::Blobs { after } => blobs::scrub_blobs(local, after.as_ref(), repair, watch),
    }
}
