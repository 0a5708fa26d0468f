//! The folder of a distribution registry (`registry:2`, `registry:3`), as its driver `filesystem` writes it.
//!
//! Below `docker/registry/v2` are `blobs/<alg>/<2 hex>/<hex>/data`, and for each repository
//! `_layers/<alg>/<hex>/link`, `_manifests/revisions/<alg>/<hex>/link` and `_manifests/tags/<tag>/current/link`. A link holds
//! a digest, and stands for the right to read that content in the repository.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;

use super::folder::Folder;
use super::manifests::SourceContent;
use super::tree::Part;
use crate::oci::{Algorithm, Digest, Manifest, RepoName, Tag};

/// The folder in the root folder of the driver.
pub(super) const ROOT: &str = "docker/registry/v2";
/// The state of a pull-through cache in the same folder.
pub(super) const PROXY_STATE: &str = "scheduler-state.json";
/// Largest length of a link in bytes.
const MAX_LINK_BYTES: u64 = 1 << 10;
const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The folder below [`ROOT`].
#[derive(Debug)]
pub(super) struct Registry(Folder);

/// The names of one repository.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) manifests: Vec<Digest>,
    pub(super) tags: Vec<TagLink>,
    /// Links that cannot be used, with the reason.
    pub(super) damaged: Vec<(String, String)>,
    /// Manifests and tags whose links were removed.
    pub(super) deleted: u64,
    pub(super) uploads: u64,
}

#[derive(Debug)]
pub(super) struct TagLink {
    pub(super) tag: Tag,
    pub(super) digest: Digest,
    /// When it was set. Of two tags, the newer one counts.
    pub(super) at: Option<SystemTime>,
    /// When a pull-through cache last confirmed it with its upstream, if the source is one.
    pub(super) confirmed: Option<SystemTime>,
}

/// The content that one repository may read.
#[derive(Debug)]
pub(super) struct RegistryRepository {
    pub(super) registry: Arc<Registry>,
    pub(super) name: String,
}

impl Registry {
    pub(super) fn new(folder: Folder) -> Self {
        Self(folder)
    }

    /// Calls `each` for every repository, in the order of the names, with the name as it is on the disk.
    ///
    /// # Errors
    /// If the folder of all repositories cannot be read. Another one is reported to `failed`.
    pub(super) fn for_each_repository<E>(
        &self,
        each: &mut dyn FnMut(String) -> Result<(), E>,
        failed: &mut dyn FnMut(String, io::Error),
    ) -> Result<(), E> {
        // The names that are still to be looked at, the next one last.
        let mut pending = vec![String::new()];
        while let Some(name) = pending.pop() {
            let path = if name.is_empty() { "repositories".to_owned() } else { format!("repositories/{name}") };
            let entries = match self.0.names(&path) {
                Ok(entries) => entries,
                // A file beside the repositories.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidData && !name.is_empty() && !self.is_link(&path) =>
                {
                    continue;
                }
                Err(error) => {
                    failed(name, error);
                    continue;
                }
            };
            if entries.iter().any(|entry| matches!(entry.as_str(), "_manifests" | "_layers" | "_uploads")) {
                each(name.clone())?;
            }
            let below = entries.iter().rev().filter(|entry| !entry.starts_with('_'));
            let below = below.map(|entry| if name.is_empty() { entry.clone() } else { format!("{name}/{entry}") });
            // A longer name is not valid, so neither it nor a name below it is a repository.
            pending.extend(below.filter(|name| name.len() <= RepoName::MAX_BYTES));
        }
        Ok(())
    }

    /// Whether there is anything but a regular file at `path`.
    fn is_link(&self, path: &str) -> bool {
        !matches!(self.0.length(path), Ok(Some(_)))
    }

    /// The manifests and tags of a repository.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(super) fn list(&self, repository: &str) -> io::Result<Listing> {
        let base = format!("repositories/{repository}");
        let mut listing =
            Listing { uploads: self.0.names(&format!("{base}/_uploads"))?.len() as u64, ..Listing::default() };
        for algorithm in ALGORITHMS.map(Algorithm::as_str) {
            let folder = format!("{base}/_manifests/revisions/{algorithm}");
            for hex in self.0.names(&folder)? {
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else {
                    listing.damaged.push((format!("{repository}@{algorithm}:{hex}"), "it is no digest".to_owned()));
                    continue;
                };
                match self.link(&format!("{folder}/{hex}/link")) {
                    Ok(Some((linked, _))) if linked == digest => listing.manifests.push(digest),
                    Ok(None) => listing.deleted += 1,
                    Ok(Some(_)) => {
                        listing
                            .damaged
                            .push((format!("{repository}@{digest}"), "its link names another digest".to_owned()));
                    }
                    Err(error) => {
                        listing.damaged.push((format!("{repository}@{digest}"), format!("its link: {error}")))
                    }
                }
            }
        }
        for name in self.0.names(&format!("{base}/_manifests/tags"))? {
            let Ok(tag) = name.parse::<Tag>() else {
                listing.damaged.push((format!("{repository}:{name}"), "it is not a valid tag".to_owned()));
                continue;
            };
            match self.link(&format!("{base}/_manifests/tags/{name}/current/link")) {
                Ok(Some((digest, at))) => listing.tags.push(TagLink { tag, digest, at, confirmed: at }),
                Ok(None) => listing.deleted += 1,
                Err(error) => listing.damaged.push((format!("{repository}:{tag}"), format!("its link: {error}"))),
            }
        }
        Ok(listing)
    }

    /// The digest in a link, and when the link was written.
    fn link(&self, path: &str) -> io::Result<Option<(Digest, Option<SystemTime>)>> {
        let Some(part) = self.0.file(path)?.map(Part::of_file).transpose()? else { return Ok(None) };
        let text = part.read(MAX_LINK_BYTES)?;
        let digest = str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let digest = digest.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it holds no digest"))?;
        Ok(Some((digest, part.modified())))
    }

    fn content(&self, digest: &Digest) -> io::Result<Option<Part>> {
        self.0.file(&content_path(digest))?.map(Part::of_file).transpose()
    }

    /// The number and bytes of the blobs that are not in `needed`, by the first bytes of their digests.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub(super) fn unreferenced(&self, needed: &HashSet<u64>, stop: &AtomicBool) -> io::Result<(u64, u64)> {
        let (mut count, mut bytes) = (0, 0);
        for algorithm in ALGORITHMS.map(Algorithm::as_str) {
            for folder in self.0.names(&format!("blobs/{algorithm}"))? {
                if stop.load(Ordering::Relaxed) {
                    return Ok((count, bytes));
                }
                for hex in self.0.names(&format!("blobs/{algorithm}/{folder}"))? {
                    let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                    if needed.contains(&prefix(&digest)) {
                        continue;
                    }
                    if let Some(length) = self.0.length(&content_path(&digest))? {
                        (count, bytes) = (count + 1, bytes + length);
                    }
                }
            }
        }
        Ok((count, bytes))
    }
}

impl SourceContent for RegistryRepository {
    fn manifest(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let (name, algorithm, hex) = (&self.name, digest.algorithm().as_str(), digest.hex());
        let link = format!("repositories/{name}/_manifests/revisions/{algorithm}/{hex}/link");
        if self.registry.0.length(&link)?.is_none() {
            return Ok(None);
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, "its content is missing");
        self.registry.content(digest)?.ok_or_else(missing)?.read(Manifest::MAX_LENGTH).map(Some)
    }

    fn blob(&self, digest: &Digest) -> io::Result<Option<Part>> {
        let (name, algorithm, hex) = (&self.name, digest.algorithm().as_str(), digest.hex());
        match self.registry.0.length(&format!("repositories/{name}/_layers/{algorithm}/{hex}/link"))? {
            Some(_) => self.registry.content(digest),
            None => Ok(None),
        }
    }
}

fn content_path(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/{}/{}/{hex}/data", digest.algorithm().as_str(), &hex[..2])
}

/// The first eight bytes, to save memory.
pub(super) fn prefix(digest: &Digest) -> u64 {
    digest.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}
