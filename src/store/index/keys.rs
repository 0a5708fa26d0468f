//! Keys and values of the index: what stands in sled, byte by byte.

use crate::oci::{Algorithm, Digest, RepoId, RepoName, Scope};
use crate::store::clock::Time;
use crate::store::records::{Class, LastUse, Unreferenced};

/// The first byte of an index key.
pub(in crate::store) mod kind {
    pub(in crate::store) const META: u8 = b'M';
    pub(in crate::store) const BLOB: u8 = b'B';
    pub(in crate::store) const REPOSITORY: u8 = b'N';
    pub(in crate::store) const TAG: u8 = b'T';
    /// When cached content was last used, if that was after it was stored.
    pub(in crate::store) const USE: u8 = b'U';
    /// A mirrored repository that a manifest belongs to.
    pub(in crate::store) const LINK: u8 = b'L';
    /// What the collector found unreferenced: content, members and manifests.
    pub(in crate::store) const MARKS: [u8; 3] = [b'c', b'm', b'u'];
}

const VALUE_VERSION: u8 = 2;

/// What the index knows about a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct BlobRecord {
    pub(in crate::store) size: u64,
    pub(in crate::store) class: Class,
    pub(in crate::store) added: Time,
}

pub(in crate::store) fn blob_key(digest: &Digest) -> Vec<u8> {
    digest_key(kind::BLOB, digest)
}

pub(in crate::store) fn use_key(digest: &Digest) -> Vec<u8> {
    digest_key(kind::USE, digest)
}

/// The prefix of the keys of a manifest's links, in all repositories.
pub(in crate::store) fn link_prefix(digest: &Digest) -> Vec<u8> {
    digest_key(kind::LINK, digest)
}

pub(in crate::store) fn link_key(repo: &RepoId, digest: &Digest) -> Vec<u8> {
    repo_digest_key(kind::LINK, repo, digest)
}

fn repo_digest_key(kind: u8, repo: &RepoId, digest: &Digest) -> Vec<u8> {
    let mut key = digest_key(kind, digest);
    key.extend_from_slice(repo.scope.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key
}

pub(in crate::store) fn mark_key(candidate: &Unreferenced) -> Vec<u8> {
    let [content, member, manifest] = kind::MARKS;
    match candidate {
        Unreferenced::Content(digest) => digest_key(content, digest),
        Unreferenced::Member(repo, digest) => repo_digest_key(member, repo, digest),
        Unreferenced::Manifest(repo, digest) => repo_digest_key(manifest, repo, digest),
    }
}

pub(in crate::store) fn mark_of_key(key: &[u8]) -> Option<Unreferenced> {
    let [content, member, manifest] = kind::MARKS;
    match *key.first()? {
        kind if kind == content => digest_of_key(key).map(Unreferenced::Content),
        kind if kind == member => link_of_key(key).map(|(digest, repo)| Unreferenced::Member(repo, digest)),
        kind if kind == manifest => link_of_key(key).map(|(digest, repo)| Unreferenced::Manifest(repo, digest)),
        _ => None,
    }
}

fn digest_key(kind: u8, digest: &Digest) -> Vec<u8> {
    let mut key = vec![kind, algorithm_byte(digest.algorithm())];
    key.extend_from_slice(digest.as_bytes());
    key
}

/// The digest in the key of a blob or of a last use.
pub(in crate::store) fn digest_of_key(key: &[u8]) -> Option<Digest> {
    match split_digest(key)? {
        (digest, []) => Some(digest),
        _ => None,
    }
}

/// The manifest and the repository in the key of a link.
pub(in crate::store) fn link_of_key(key: &[u8]) -> Option<(Digest, RepoId)> {
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
    pub(in crate::store) fn to_bytes(self) -> [u8; 14] {
        let mut value = [VALUE_VERSION, self.class as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        value[2..10].copy_from_slice(&self.size.to_be_bytes());
        value[10..].copy_from_slice(&self.added.to_be_bytes());
        value
    }

    pub(in crate::store) fn from_bytes(value: &[u8]) -> Option<Self> {
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
    pub(in crate::store) fn to_bytes(&self) -> [u8; 8] {
        let [a, b, c, d] = self.at.to_be_bytes();
        [VALUE_VERSION, u8::from(self.protected), 0, 0, a, b, c, d]
    }

    pub(in crate::store) fn from_bytes(digest: Digest, value: &[u8]) -> Option<Self> {
        match *value {
            [VALUE_VERSION, protected, 0, 0, a, b, c, d] if protected < 2 => {
                Some(Self { digest, at: Time::from_be_bytes([a, b, c, d]), protected: protected == 1 })
            }
            _ => None,
        }
    }
}

/// A NUL ends each part of the key. It occurs in no scope, name or tag, and sorts before all of their bytes.
pub(in crate::store) fn repository_key(repo: &RepoId) -> Vec<u8> {
    let mut key = scope_prefix(&repo.scope);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key
}

pub(in crate::store) fn scope_prefix(scope: &Scope) -> Vec<u8> {
    let mut key = vec![kind::REPOSITORY];
    key.extend_from_slice(scope.as_str().as_bytes());
    key.push(0);
    key
}

pub(in crate::store) fn tag_prefix(repo: &RepoId) -> Vec<u8> {
    let mut key = vec![kind::TAG];
    key.extend_from_slice(repo.scope.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(repo.name.as_str().as_bytes());
    key.push(0);
    key
}

/// The repository in the key of a repository or tag, and the tag in that of a tag.
pub(in crate::store) fn names_of_key(key: &[u8]) -> Option<(RepoId, Option<&str>)> {
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
                Unreferenced::Content(digest.clone()),
                Unreferenced::Member(repo.clone(), digest.clone()),
                Unreferenced::Manifest(repo.clone(), digest.clone()),
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
