//! Every blob, in the order of digests: is it what its name says?

use std::fs;
use std::io;

use super::read::{Buffer, Read, digest_of, is_ours};
use super::{Finding, Inner, Problem, ScrubWatch};
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::reconcile::digest_of_file;
use crate::store::records::Class;

/// Local repositories that are named in a finding.
const MOST_HOLDERS: usize = 10;

/// What reading a blob came to.
enum Outcome {
    /// Its length in bytes.
    Right(u64),
    /// It went meanwhile, which is no damage.
    Gone,
    Stopped,
    Wrong(Read),
    Unreadable(io::Error),
}

impl Inner {
    pub(super) fn scrub_blobs(
        &self,
        after: Option<&Digest>,
        repair: bool,
        watch: &mut dyn ScrubWatch,
    ) -> Result<bool, StoreError> {
        let mut buffer = Buffer::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for first in 0..=u8::MAX {
                let mut digests = self.blobs_in(algorithm, first)?;
                digests.retain(|digest| after.is_none_or(|after| digest > after));
                // Sorted, so that a position in the order says what has been read.
                digests.sort_unstable();
                for digest in &digests {
                    if !self.scrub_blob(digest, repair, &mut buffer, watch)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn blobs_in(&self, algorithm: Algorithm, first: u8) -> Result<Vec<Digest>, StoreError> {
        let folder = self.layout.blob_folder(algorithm, first);
        let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { return Ok(Vec::new()) };
        let mut digests = Vec::new();
        for entry in entries {
            digests.extend(digest_of_file(algorithm, &entry.at("read", &folder)?.file_name()));
        }
        Ok(digests)
    }

    fn scrub_blob(
        &self,
        digest: &Digest,
        repair: bool,
        buffer: &mut Buffer,
        watch: &mut dyn ScrubWatch,
    ) -> Result<bool, StoreError> {
        let outcome = match self.read_blob(digest, buffer, watch) {
            // Once more: what memory or a cable spoilt on the way is no damage of the file.
            Outcome::Wrong(_) => self.read_blob(digest, buffer, watch),
            outcome => outcome,
        };
        match outcome {
            Outcome::Right(length) => watch.blob_checked(digest, length),
            Outcome::Gone => {}
            Outcome::Stopped => return Ok(false),
            Outcome::Wrong(read) => {
                watch.blob_checked(digest, read.length);
                let known = self.index.blob(digest).map(|blob| blob.size);
                let same_length = known.is_none_or(|known| known == read.length);
                let problem = if same_length { Problem::Digest } else { Problem::Length };
                let mut finding = self.finding(digest, problem)?;
                if repair {
                    self.quarantine(digest, &read.file)?;
                    finding.quarantined = true;
                }
                watch.found(finding);
            }
            Outcome::Unreadable(error) if is_ours(&error) => {
                return Err(error).at("read", &self.layout.blob(digest));
            }
            Outcome::Unreadable(error) => {
                tracing::error!(%digest, %error, "the file of {digest} cannot be read: {error}");
                watch.blob_checked(digest, 0);
                let mut finding = self.finding(digest, Problem::Unreadable)?;
                // A disk may read later what it cannot read now, and nobody else has pushed content.
                if repair
                    && finding.class == Class::Cached
                    && let Ok(file) = fs::File::open(self.layout.blob(digest))
                {
                    self.quarantine(digest, &file)?;
                    finding.quarantined = true;
                }
                watch.found(finding);
            }
        }
        Ok(true)
    }

    fn read_blob(&self, digest: &Digest, buffer: &mut Buffer, watch: &mut dyn ScrubWatch) -> Outcome {
        let path = self.layout.blob(digest);
        match digest_of(&path, digest.algorithm(), buffer, &mut |bytes| watch.may_read(bytes)) {
            Ok(Read { digest: None, .. }) => Outcome::Stopped,
            Ok(read) if read.digest.as_ref() == Some(digest) => Outcome::Right(read.length),
            Ok(read) => Outcome::Wrong(read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Gone,
            Err(error) => Outcome::Unreadable(error),
        }
    }

    fn finding(&self, digest: &Digest, problem: Problem) -> Result<Finding, StoreError> {
        let repositories = self.holders(digest)?;
        let metadata = fs::metadata(self.layout.blob(digest));
        let pushed = metadata.is_ok_and(|metadata| self.is_pushed(digest, &metadata).unwrap_or(false));
        let class = if pushed || !repositories.is_empty() { Class::Pushed } else { Class::Cached };
        Ok(Finding { problem, class, digest: Some(digest.to_string()), tag: None, repositories, quarantined: false })
    }

    /// Local repositories that have this content. Looks into each: for what is rare.
    fn holders(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        let mut locals: Vec<RepoId> = self.locals.read().iter().cloned().map(RepoId::local).collect();
        locals.sort_unstable_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        let mut holders = Vec::new();
        for repo in locals {
            if self.layout.blob_link(&repo, digest).exists() || self.layout.manifest_link(&repo, digest).exists() {
                holders.push(repo.to_string());
            }
            if holders.len() == MOST_HOLDERS {
                break;
            }
        }
        Ok(holders)
    }
}
