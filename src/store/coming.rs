//! Content that is about to be named: it is here, or will be in a moment, and the link to it is still to be written. The
//! collector leaves it alone, however short its grace.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::oci::Digest;

#[derive(Debug, Default)]
pub(super) struct Coming {
    /// How many are about to name it.
    counts: Mutex<HashMap<Digest, usize>>,
}

/// Taken before the content is put in place or looked for, and held until its link is there.
#[derive(Debug)]
#[must_use = "the content is safe only while it is held"]
pub(super) struct Held<'a> {
    coming: &'a Coming,
    digest: Digest,
}

impl Coming {
    pub(super) fn hold(&self, digest: &Digest) -> Held<'_> {
        *self.counts.lock().entry(digest.clone()).or_default() += 1;
        Held { coming: self, digest: digest.clone() }
    }

    /// To be asked under the digest's lock, and before its links are looked at.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.counts.lock().contains_key(digest)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut counts = self.coming.counts.lock();
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
    fn what_two_hold_is_held_until_both_are_done() {
        let (coming, digest) = (Coming::default(), Digest::of(Algorithm::Sha256, b"x"));
        let (one, two) = (coming.hold(&digest), coming.hold(&digest));
        drop(one);
        assert!(coming.contains(&digest));
        drop(two);
        assert!(!coming.contains(&digest) && coming.counts.lock().is_empty());
    }
}
