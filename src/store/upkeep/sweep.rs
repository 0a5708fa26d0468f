//! The sweep: removes names of mirrored repositories that have become useless, so that names do not accumulate.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::oci::{RepoId, Scope};
use crate::store::error::StoreError;
use crate::store::local::Local;

/// How much a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Swept {
    pub tags: u64,
    pub links: u64,
    pub repositories: u64,
}

/// Removes from mirrored repositories: tags that no upstream has confirmed for `unconfirmed`, tags and links of manifests
/// that are gone, and links of blobs that no manifest refers to. Blocks for as long as a walk of all names takes, or until
/// `stop` is set.
pub(in crate::store) fn sweep(local: &Local, unconfirmed: Duration, stop: &AtomicBool) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    for scope in local.scopes()?.into_iter().filter(|scope| *scope != Scope::Local) {
        let mut repositories = Vec::new();
        local.walk_repositories(&scope, &mut |repo| {
            repositories.push(repo);
            Ok(!stop.load(Ordering::Relaxed))
        })?;
        for repo in repositories {
            if stop.load(Ordering::Relaxed) {
                return Ok(swept);
            }
            sweep_repository(local, &repo, unconfirmed, &mut swept)?;
        }
    }
    Ok(swept)
}

fn sweep_repository(local: &Local, repo: &RepoId, unconfirmed: Duration, swept: &mut Swept) -> Result<(), StoreError> {
    let layout = local.layout();
    for tag in layout.tags_on_disk(repo)? {
        swept.tags += u64::from(local.sweep_tag(repo, &tag, unconfirmed)?);
    }
    let mut needed = HashSet::new();
    for digest in layout.links_below(&layout.manifests(repo))? {
        match layout.parse_manifest(&digest)? {
            Some(manifest) => needed.extend(manifest.children.into_iter().map(|child| child.digest)),
            None => swept.links += u64::from(local.sweep_manifest(repo, &digest)?),
        }
    }
    let members = layout.links_below(&layout.blob_links(repo))?;
    for digest in members.into_iter().filter(|digest| !needed.contains(digest)) {
        swept.links += u64::from(local.sweep_member(repo, &digest)?);
    }
    let (links, removed) = local.sweep_rest(repo)?;
    swept.links += links;
    swept.repositories += u64::from(removed);
    Ok(())
}
