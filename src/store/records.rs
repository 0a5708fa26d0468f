//! What stands in a name file and in the index: small, versioned, readable.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::clock::LastNoted;
use super::segments::{LastUse, Time};
use crate::oci::{Algorithm, Digest, Manifest, RepoId, RepoName, Scope};

/// Why content is kept: cached content may be evicted and fetched again, pushed content goes only when someone deletes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Cached,
    Pushed,
}

/// What a tag means, and when its upstream last said so (for a local tag: when it was pushed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    pub digest: Digest,
    pub media_type: String,
    /// Whole seconds.
    pub confirmed: SystemTime,
}

/// A manifest that belongs to a repository, as it is served there.
#[derive(Debug)]
pub struct StoredManifest {
    pub digest: Digest,
    /// The digest as text, in double quotes: what an entity tag of it is, made once.
    pub quoted_digest: Bytes,
    pub media_type: String,
    pub bytes: Bytes,
    /// What it refers to and needs.
    pub(super) children: Box<[Digest]>,
    pub(super) noted: LastNoted,
}

/// A digest may be read in a repository; its size, if a descriptor or the upstream told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub size: Option<u64>,
}

/// What the collector may remove.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Candidate {
    /// Content that no local repository names.
    Content(Digest),
    /// A local repository's right to a blob that none of its manifests refers to.
    Member(RepoId, Digest),
    /// A manifest that no tag leads to.
    Manifest(RepoId, Digest),
}

/// One page of a list, in ASCII order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub items: Vec<String>,
    pub more: bool,
}

// === impl Class ===

impl Class {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Pushed => "pushed",
        }
    }
}

// === impl StoredManifest ===

impl StoredManifest {
    pub fn new(digest: Digest, media_type: String, bytes: Bytes, manifest: &Manifest) -> Self {
        let needed = manifest.children.iter().filter(|child| !child.optional);
        let children = needed.map(|child| child.digest.clone()).collect();
        let quoted_digest = digest.quoted();
        Self { digest, quoted_digest, media_type, bytes, children, noted: LastNoted::default() }
    }

    /// Bytes that it takes in memory, about.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.children.len() * size_of::<Digest>()
    }
}

// === impl TagRecord ===

impl TagRecord {
    /// As `key value` lines, for people who `cat` the file.
    pub(super) fn to_text(&self) -> String {
        let confirmed = self.confirmed.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("digest {}\nmedia-type {}\nconfirmed {confirmed}\n", self.digest, self.media_type)
    }

    /// `None` for what is not such a file, a half-written one included.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let confirmed = field(text, "confirmed")?.parse().ok()?;
        Some(Self {
            digest: field(text, "digest")?.parse().ok()?,
            media_type: field(text, "media-type")?.to_owned(),
            confirmed: UNIX_EPOCH.checked_add(Duration::from_secs(confirmed))?,
        })
    }
}

// === impl Member ===

impl Member {
    pub(super) fn to_text(self) -> String {
        self.size.map(|size| format!("size {size}\n")).unwrap_or_default()
    }

    pub(super) fn from_text(text: &str) -> Self {
        Self { size: field(text, "size").and_then(|size| size.parse().ok()) }
    }
}

pub(super) fn manifest_link_text(media_type: &str) -> String {
    format!("media-type {media_type}\n")
}

pub(super) fn manifest_link_media_type(text: &str) -> Option<&str> {
    field(text, "media-type")
}

/// The value of a line that ends: a line cut short by a crash is not there.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

// === Index keys and values ===

/// The first byte of an index key.
pub(super) mod kind {
    pub(in crate::store) const META: u8 = b'M';
    pub(in crate::store) const BLOB: u8 = b'B';
    pub(in crate::store) const REPOSITORY: u8 = b'N';
    pub(in crate::store) const TAG: u8 = b'T';
    /// When cached content was last used, if later than it came.
    pub(in crate::store) const USE: u8 = b'U';
    /// A manifest's mirrored repositories.
    pub(in crate::store) const LINK: u8 = b'L';
    /// What the collector found out of reach: content, members and manifests of repositories.
    pub(in crate::store) const MARKS: [u8; 3] = [b'c', b'm', b'u'];
}

const VALUE_VERSION: u8 = 2;

/// What the index knows of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlobRecord {
    pub(super) size: u64,
    pub(super) class: Class,
    pub(super) added: Time,
}

pub(super) fn blob_key(digest: &Digest) -> Vec<u8> {
    digest_key(kind::BLOB, digest)
}

pub(super) fn use_key(digest: &Digest) -> Vec<u8> {
    digest_key(kind::USE, digest)
}

/// Of a manifest in all its repositories.
pub(super) fn link_prefix(digest: &Digest) -> Vec<u8> {
    digest_key(kind::LINK, digest)
}

pub(super) fn link_key(repo: &RepoId, digest: &Digest) -> Vec<u8> {
    repo_digest_key(kind::LINK, repo, digest)
}

fn repo_digest_key(kind: u8, repo: &RepoId, digest: &Digest) -> Vec<u8> {
    let mut key = digest_key(kind, digest);
    key.extend_from_slice(repo.scope.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key
}

pub(super) fn mark_key(candidate: &Candidate) -> Vec<u8> {
    let [content, member, manifest] = kind::MARKS;
    match candidate {
        Candidate::Content(digest) => digest_key(content, digest),
        Candidate::Member(repo, digest) => repo_digest_key(member, repo, digest),
        Candidate::Manifest(repo, digest) => repo_digest_key(manifest, repo, digest),
    }
}

pub(super) fn mark_of_key(key: &[u8]) -> Option<Candidate> {
    let [content, member, manifest] = kind::MARKS;
    match *key.first()? {
        kind if kind == content => digest_of_key(key).map(Candidate::Content),
        kind if kind == member => link_of_key(key).map(|(digest, repo)| Candidate::Member(repo, digest)),
        kind if kind == manifest => link_of_key(key).map(|(digest, repo)| Candidate::Manifest(repo, digest)),
        _ => None,
    }
}

fn digest_key(kind: u8, digest: &Digest) -> Vec<u8> {
    let mut key = vec![kind, algorithm_byte(digest.algorithm())];
    key.extend_from_slice(digest.as_bytes());
    key
}

/// The digest of a blob's or a last use's key.
pub(super) fn digest_of_key(key: &[u8]) -> Option<Digest> {
    match split_digest(key)? {
        (digest, []) => Some(digest),
        _ => None,
    }
}

/// Manifest and repository of a link's key.
pub(super) fn link_of_key(key: &[u8]) -> Option<(Digest, RepoId)> {
    let (digest, repo) = split_digest(key)?;
    let (scope, name) = std::str::from_utf8(repo).ok()?.split_once('\0')?;
    Some((digest, RepoId::new(scope_of(scope), name.parse().ok()?)))
}

fn split_digest(key: &[u8]) -> Option<(Digest, &[u8])> {
    let (&[_, algorithm], rest) = key.split_first_chunk::<2>()?;
    let (algorithm, length) = match algorithm {
        1 => (Algorithm::Sha256, 32),
        2 => (Algorithm::Sha512, 64),
        _ => return None,
    };
    let (digest, rest) = rest.split_at_checked(length)?;
    Some((Digest::from_bytes(algorithm, digest)?, rest))
}

impl BlobRecord {
    pub(super) fn to_bytes(self) -> [u8; 14] {
        let mut value = [VALUE_VERSION, self.class as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        value[2..10].copy_from_slice(&self.size.to_be_bytes());
        value[10..].copy_from_slice(&self.added.to_be_bytes());
        value
    }

    pub(super) fn from_bytes(value: &[u8]) -> Option<Self> {
        let (head, rest) = value.split_first_chunk::<2>()?;
        let class = match head {
            [VALUE_VERSION, 0] => Class::Cached,
            [VALUE_VERSION, 1] => Class::Pushed,
            _ => return None,
        };
        let (size, added) = rest.split_first_chunk::<8>()?;
        Some(Self { size: u64::from_be_bytes(*size), class, added: Time::from_be_bytes(added.try_into().ok()?) })
    }
}

impl LastUse {
    pub(super) fn to_bytes(&self) -> [u8; 8] {
        let [a, b, c, d] = self.at.to_be_bytes();
        [VALUE_VERSION, u8::from(self.protected), 0, 0, a, b, c, d]
    }

    pub(super) fn from_bytes(digest: Digest, value: &[u8]) -> Option<Self> {
        match *value {
            [VALUE_VERSION, protected, 0, 0, a, b, c, d] if protected < 2 => {
                Some(Self { digest, at: Time::from_be_bytes([a, b, c, d]), protected: protected == 1 })
            }
            _ => None,
        }
    }
}

/// Neither scopes, names nor tags contain a NUL, so it ends each part and sorts before all they contain.
pub(super) fn repository_key(repo: &RepoId) -> Vec<u8> {
    let mut key = scope_prefix(&repo.scope);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key
}

pub(super) fn scope_prefix(scope: &Scope) -> Vec<u8> {
    let mut key = vec![kind::REPOSITORY];
    key.extend_from_slice(scope.as_str().as_bytes());
    key.push(0);
    key
}

pub(super) fn tag_prefix(repo: &RepoId) -> Vec<u8> {
    let mut key = vec![kind::TAG];
    key.extend_from_slice(repo.scope.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key.push(0);
    key
}

/// Scope, name and, for a tag's key, the tag of a repository's or tag's key.
pub(super) fn names_of_key(key: &[u8]) -> Option<(RepoId, Option<&str>)> {
    let text = std::str::from_utf8(key.get(1..)?).ok()?;
    let mut parts = text.split('\0');
    let scope = scope_of(parts.next()?);
    let name: RepoName = parts.next()?.parse().ok()?;
    Some((RepoId::new(scope, name), parts.next()))
}

fn scope_of(text: &str) -> Scope {
    match text {
        "local" => Scope::Local,
        upstream => Scope::Upstream(upstream.into()),
    }
}

fn algorithm_byte(algorithm: Algorithm) -> u8 {
    match algorithm {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_file_reads_back_and_a_cut_one_does_not() {
        let record = TagRecord {
            digest: Digest::of(Algorithm::Sha256, b"m"),
            media_type: "application/x".into(),
            confirmed: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        let text = record.to_text();
        assert_eq!(TagRecord::from_text(&text), Some(record));
        for cut in 0..text.len() {
            assert_eq!(TagRecord::from_text(&text[..cut]), None, "{cut}");
        }
        assert_eq!(TagRecord::from_text(&text.replace("1800000000", "18446744073709551615")), None);
    }

    #[test]
    fn index_records_read_back() {
        for class in [Class::Cached, Class::Pushed] {
            let record = BlobRecord { size: 77, class, added: 1_800_000_000 };
            assert_eq!(BlobRecord::from_bytes(&record.to_bytes()), Some(record));
        }
        assert_eq!(BlobRecord::from_bytes(b""), None);
        assert_eq!(BlobRecord::from_bytes(&[9; 14]), None);
        let repo = RepoId::new(Scope::Upstream("ghcr.io".into()), "a/b".parse().unwrap());
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(digest_of_key(&blob_key(&digest)), Some(digest.clone()));
            assert_eq!(digest_of_key(&blob_key(&digest)[..20]), None);
            assert_eq!(link_of_key(&link_key(&repo, &digest)), Some((digest.clone(), repo.clone())));
            let marks = [
                Candidate::Content(digest.clone()),
                Candidate::Member(repo.clone(), digest.clone()),
                Candidate::Manifest(repo.clone(), digest.clone()),
            ];
            for mark in marks {
                assert_eq!(mark_of_key(&mark_key(&mark)), Some(mark));
            }
            let last = LastUse { digest: digest.clone(), at: 1_800_000_000, protected: true };
            assert_eq!(LastUse::from_bytes(digest, &last.to_bytes()), Some(last));
        }
        let mut key = tag_prefix(&repo);
        key.extend_from_slice(b"v1");
        assert_eq!(names_of_key(&key), Some((repo.clone(), Some("v1"))));
        assert_eq!(names_of_key(&repository_key(&repo)), Some((repo, None)));
    }
}
