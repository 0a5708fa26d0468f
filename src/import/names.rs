//! Imports tags, after the manifests that they point to.

use std::time::{Duration, SystemTime};

use super::manifests::{Importer, Outcome, Stop};
use super::registry::TagLink;
use crate::store::TagRecord;

impl Importer<'_, '_> {
    /// Points tags to the manifests that are here now. Returns the number of tags that do then. A tag that exists here with
    /// another manifest stays if it is newer: it was pushed to this server. If not, it was moved in the source after an earlier
    /// import. `unconfirmed` is the least age of the confirmation of a mirrored tag, so that its upstream is asked before the
    /// tag is used.
    pub(super) fn tags(&mut self, tags: &[TagLink], unconfirmed: Duration) -> Result<u64, Stop> {
        let mut present = 0;
        for link in tags {
            self.require_continue()?;
            match self.manifests.get(&link.digest) {
                Some(Outcome::Present) => present += u64::from(self.tag(link, unconfirmed)?),
                Some(Outcome::Failed) => {
                    self.report.failed("tag", format!("{}:{}", self.repo, link.tag), "its manifest is left out");
                }
                Some(Outcome::NoRoom) => {}
                Some(Outcome::Absent) | None => self.report.summary.dangling_tags += 1,
            }
        }
        Ok(present)
    }

    /// False if the tag exists with another manifest.
    fn tag(&mut self, link: &TagLink, unconfirmed: Duration) -> Result<bool, Stop> {
        let TagLink { tag, digest, at, confirmed } = link;
        let stored = match self.store {
            Some(store) => self.wait(store.tag(&self.repo, tag))?,
            None => None,
        };
        match &stored {
            Some(record) if record.digest == *digest => {
                self.report.summary.known_tags += 1;
                return Ok(true);
            }
            // A time in the future is wrong, and would beat every push until then.
            Some(record) if at.is_none_or(|at| at <= record.confirmed || at > SystemTime::now()) => {
                return Ok(self.keep(link));
            }
            Some(_) | None => {}
        }
        if let (Some(store), false) = (self.store, self.dry_run) {
            let Some(manifest) = self.wait(store.manifest(&self.repo, digest))? else { return Ok(false) };
            let media_type = manifest.media_type.as_str().into();
            let confirmed = self.confirmed(if self.is_local() { *at } else { *confirmed }, unconfirmed);
            let record = TagRecord { digest: digest.clone(), media_type, confirmed };
            let old = stored.map(|stored| stored.digest);
            let set = store.compare_and_set_tag(&self.repo, tag, old, record, Duration::ZERO);
            // A push may have been faster.
            if !self.wait(set)? {
                return Ok(self.keep(link));
            }
        }
        self.report.summary.tags += 1;
        Ok(true)
    }

    fn keep(&mut self, link: &TagLink) -> bool {
        self.report.summary.kept_tags += 1;
        let name = format!("{}:{}", self.repo, link.tag);
        self.report.left(
            "tag",
            name,
            format!("it is newer here, with another manifest, and stays; the source has {}", link.digest),
        );
        false
    }

    /// When the tag was set, or last confirmed by its upstream.
    fn confirmed(&self, at: Option<SystemTime>, unconfirmed: Duration) -> SystemTime {
        let now = SystemTime::now();
        let latest = if self.is_local() { now } else { now.checked_sub(unconfirmed).unwrap_or(SystemTime::UNIX_EPOCH) };
        at.unwrap_or(latest).min(latest)
    }
}
