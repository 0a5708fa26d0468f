//! Scrubbing content: whether every blob has its digest, in the order of digests.

use std::io;

use super::read::{DirectBuffer, HashedFile, hash_file, is_lack_of_resources};
use super::{Finding, Problem, ScrubWatch};
use crate::oci::{Algorithm, Digest, RepoId};
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::local::{Local, QuarantineCause, digest_of_file};
use crate::store::records::Class;

/// Local repositories that a finding names.
const MAX_HOLDERS: usize = 10;

/// What reading a blob has shown.
enum Outcome {
    /// It has its digest, and this length in bytes.
    Intact(u64),
    /// It was removed in the meantime, which is no damage.
    Gone,
    Stopped,
    Corrupt(HashedFile),
    Unreadable(io::Error),
}

pub(super) fn scrub_blobs(
    local: &Local,
    after: Option<&Digest>,
    repair: bool,
    watch: &mut dyn ScrubWatch,
) -> Result<bool, StoreError> {
    let mut buffer = DirectBuffer::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for first in 0..=u8::MAX {
            let mut digests = blobs_in(local, algorithm, first)?;
            digests.retain(|digest| after.is_none_or(|after| digest > after));
            // Sorted, so that a position in the order says what has been read.
            digests.sort_unstable();
            for digest in &digests {
                if !scrub_blob(local, digest, repair, &mut buffer, watch)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

fn blobs_in(local: &Local, algorithm: Algorithm, first: u8) -> Result<Vec<Digest>, StoreError> {
    let folder = local.layout().blob_folder(algorithm, first);
    let Some(entries) = optional(fs::read_dir(&folder)).at("read", &folder)? else { return Ok(Vec::new()) };
    let mut digests = Vec::new();
    for entry in entries {
        digests.extend(digest_of_file(algorithm, &entry.at("read", &folder)?.file_name()));
    }
    Ok(digests)
}

fn scrub_blob(
    local: &Local,
    digest: &Digest,
    repair: bool,
    buffer: &mut DirectBuffer,
    watch: &mut dyn ScrubWatch,
) -> Result<bool, StoreError> {
    let outcome = match read_blob(local, digest, buffer, watch) {
        // Read again: an error of memory or of a cable is no damage of the file.
        Outcome::Corrupt(_) => read_blob(local, digest, buffer, watch),
        outcome => outcome,
    };
    match outcome {
        Outcome::Intact(length) => watch.blob_checked(digest, length),
        Outcome::Gone => {}
        Outcome::Stopped => return Ok(false),
        Outcome::Corrupt(read) => {
            watch.blob_checked(digest, read.length);
            let known = local.index().blob(digest).map(|blob| blob.size);
            let same_length = known.is_none_or(|known| known == read.length);
            let problem = if same_length { Problem::Digest } else { Problem::Length };
            let mut finding = finding(local, digest, problem)?;
            if repair {
                local.quarantine(digest, &read.file, QuarantineCause::WrongContent)?;
                finding.quarantined = true;
            }
            watch.found(finding);
        }
        // Something that is no file.
        Outcome::Unreadable(error) if error.kind() == io::ErrorKind::InvalidData => {
            watch.blob_checked(digest, 0);
            let mut finding = finding(local, digest, Problem::Unreadable)?;
            if repair {
                finding.quarantined = local.quarantine_irregular(digest)?;
            }
            watch.found(finding);
        }
        Outcome::Unreadable(error) if is_lack_of_resources(&error) => {
            return Err(error).at("read", &local.layout().blob(digest));
        }
        Outcome::Unreadable(error) => {
            tracing::error!(%digest, %error, "a content file cannot be read");
            watch.blob_checked(digest, 0);
            let mut finding = finding(local, digest, Problem::Unreadable)?;
            // The disk may be able to read it later, and pushed content cannot be fetched again.
            if repair
                && finding.class == Class::Cached
                && let Ok(file) = fs::open(&local.layout().blob(digest))
            {
                local.quarantine(digest, &file, QuarantineCause::Unreadable)?;
                finding.quarantined = true;
            }
            watch.found(finding);
        }
    }
    Ok(true)
}

fn read_blob(local: &Local, digest: &Digest, buffer: &mut DirectBuffer, watch: &mut dyn ScrubWatch) -> Outcome {
    let path = local.layout().blob(digest);
    match hash_file(&path, digest.algorithm(), buffer, &mut |bytes| watch.may_read(bytes)) {
        Ok(HashedFile { digest: None, .. }) => Outcome::Stopped,
        Ok(read) if read.digest.as_ref() == Some(digest) => Outcome::Intact(read.length),
        Ok(read) => Outcome::Corrupt(read),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Outcome::Gone,
        Err(error) => Outcome::Unreadable(error),
    }
}

fn finding(local: &Local, digest: &Digest, problem: Problem) -> Result<Finding, StoreError> {
    let repositories = holders(local, digest)?;
    let metadata = fs::metadata(&local.layout().blob(digest));
    let pushed = metadata.is_ok_and(|metadata| local.is_pushed(digest, &metadata).unwrap_or(false));
    let class = if pushed || !repositories.is_empty() { Class::Pushed } else { Class::Cached };
    Ok(Finding { problem, class, digest: Some(digest.to_string()), tag: None, repositories, quarantined: false })
}

/// The local repositories that have this content. Looks into each of them, which is slow.
fn holders(local: &Local, digest: &Digest) -> Result<Vec<String>, StoreError> {
    let mut locals: Vec<RepoId> = local.names().locals().into_iter().map(RepoId::local).collect();
    locals.sort_unstable_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
    let mut holders = Vec::new();
    for repo in locals {
        if fs::is_file(&local.layout().blob_link(&repo, digest))
            || fs::is_file(&local.layout().manifest_link(&repo, digest))
        {
            holders.push(repo.to_string());
        }
        if holders.len() == MAX_HOLDERS {
            break;
        }
    }
    Ok(holders)
}
