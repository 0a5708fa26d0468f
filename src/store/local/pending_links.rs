//! Content that is stored, or is being stored, and whose link is not yet written. The collector does not remove it, however
//! short its grace period is.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::oci::Digest;

#[derive(Debug, Default)]
pub(super) struct PendingLinks {
    /// How many links to each digest are about to be written.
    counts: Mutex<HashMap<Digest, usize>>,
}

/// To be taken before the content is put in place or looked up, and held until its link is written.
#[derive(Debug)]
#[must_use = "the content is protected only while this is held"]
pub(super) struct PendingLink<'a> {
    pending: &'a PendingLinks,
    digest: Digest,
}

impl PendingLinks {
    pub(super) fn announce(&self, digest: &Digest) -> PendingLink<'_> {
        *self.counts.lock().entry(digest.clone()).or_default() += 1;
        PendingLink { pending: self, digest: digest.clone() }
    }

    /// To be asked under the digest's lock, before its links are looked at.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.counts.lock().contains_key(digest)
    }
}

impl Drop for PendingLink<'_> {
    fn drop(&mut self) {
        let mut counts = self.pending.counts.lock();
        if let Some(count) = counts.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn content_stays_protected_until_its_last_link_is_written() {
        let (pending, digest) = (PendingLinks::default(), Digest::of(Algorithm::Sha256, b"x"));
        let (one, two) = (pending.announce(&digest), pending.announce(&digest));
        drop(one);
        assert!(pending.contains(&digest));
        drop(two);
        assert!(!pending.contains(&digest) && pending.counts.lock().is_empty());
    }
}
