//! The scrub: reads every name and every blob, and finds what is not what it says it is.
//!
//! Names first, then blobs in the order of their digests, so that a pass can be taken up where it was. What is found is
//! told to a [`ScrubWatch`], which also says how fast it may go and when to end; what a repair moves aside lies in
//! `quarantine/`. Cached content is then fetched again by the next pull; pushed content is gone until it is pushed again.

mod blobs;
mod names;
mod place;
mod read;

use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::records::Class;
use super::{Inner, Store};
use crate::oci::Digest;

pub use place::ScrubPlace;

/// What one call looks at.
#[derive(Clone, Debug)]
pub enum ScrubPart {
    /// Tags and links.
    Names,
    /// The blobs after this one, or all.
    Blobs { after: Option<Digest> },
}

/// Who follows a scrub. Called on a blocking thread: it may wait.
pub trait ScrubWatch {
    /// Waits until `bytes` more may be read; false ends the scrub.
    fn may_read(&mut self, bytes: u64) -> bool;

    /// One tag or link was looked at.
    fn name_checked(&mut self);

    /// One blob of `bytes` was read, whatever was found.
    fn blob_checked(&mut self, digest: &Digest, bytes: u64);

    fn found(&mut self, finding: Finding);
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub problem: Problem,
    pub class: Class,
    /// The content it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The tag it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// For a name its repository; for a blob the local repositories that have it. The first few.
    pub repositories: Vec<String>,
    /// Whether the file was moved to `quarantine/`.
    pub quarantined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// A blob is not as long as it was when it was stored.
    Length,
    /// A blob is not what its digest says.
    Digest,
    /// The disk cannot read a file. A name stays where it is, and so does pushed content.
    Unreadable,
    /// A pushed blob or manifest is not here.
    Missing,
    /// The file of a tag or link does not hold what such a file holds.
    Name,
    /// A pushed manifest refers to what was deleted from its repository. No damage of ours.
    Incomplete,
    /// A pushed tag names a manifest that was deleted from its repository; it counts as not there. No damage.
    Dangling,
}

impl Problem {
    /// Whether something was lost or spoilt, rather than deleted by somebody.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::Incomplete | Self::Dangling)
    }
}

impl Store {
    /// Scrubs one part, with `repair` moving what is damaged aside. Whether it came to the end, and the watch.
    ///
    /// # Errors
    /// When folders cannot be listed, or descriptors or memory are lacking; a file that the disk cannot read is a finding.
    pub async fn scrub<W>(&self, part: ScrubPart, repair: bool, mut watch: W) -> Result<(bool, W), StoreError>
    where
        W: ScrubWatch + Send + 'static,
    {
        self.run(move |inner| {
            if repair {
                inner.check_writes()?;
            }
            let ended = match part {
                ScrubPart::Names => inner.scrub_names(repair, &mut watch)?,
                ScrubPart::Blobs { after } => inner.scrub_blobs(after.as_ref(), repair, &mut watch)?,
            };
            Ok((ended, watch))
        })
        .await
    }
}
