//! The store and its index compared with a model in memory: pushes, fills, deletes, mounts, evictions, collections,
//! restarts and rebuilds in random order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use roadstead::oci::{Algorithm, Digest, Manifest, RepoId, Scope, Tag};
use roadstead::store::{Bounds, Class, CollectRules, NAME_BYTES, NewManifest, Store, StoreSettings};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::scene::KIB;
use crate::support::image::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, random_bytes};

const BLOBS: usize = 6;
const BLOB_BYTES: usize = 16 * KIB;
const MANIFESTS: [&[usize]; 4] = [&[0], &[1, 2], &[2, 3], &[4, 5]];
const REPOSITORIES: usize = 2;
const TAGS: [&str; 2] = ["v1", "v2"];
/// Room for a few blobs and their names.
const MAX_SIZE_BYTES: u64 = 4 * BLOB_BYTES as u64 + 24 * NAME_BYTES;
const NO_GRACE: CollectRules =
    CollectRules { grace: Duration::ZERO, unreferenced_after: Duration::ZERO, untagged_after: None, remove: true };

#[derive(Clone, Debug)]
enum Step {
    Push {
        repo: usize,
        blob: usize,
    },
    Fill {
        repo: usize,
        blob: usize,
    },
    Mount {
        repo: usize,
        blob: usize,
    },
    PutLocal {
        repo: usize,
        manifest: usize,
        tag: usize,
    },
    PutMirrored {
        repo: usize,
        manifest: usize,
        tag: usize,
    },
    DeleteTag {
        repo: usize,
        tag: usize,
    },
    DeleteManifest {
        repo: usize,
        manifest: usize,
    },
    Unlink {
        repo: usize,
        blob: usize,
    },
    /// Reserves this much room and does not use it.
    Squeeze {
        blobs: usize,
    },
    Collect,
    Sweep,
    Restart,
    Crash,
    Rebuild,
}

fn step() -> impl Strategy<Value = Step> {
    let (repo, blob, tag, manifest) = (0..REPOSITORIES, 0..BLOBS, 0..TAGS.len(), 0..MANIFESTS.len());
    prop_oneof![
        6 => (repo.clone(), blob.clone()).prop_map(|(repo, blob)| Step::Push { repo, blob }),
        6 => (repo.clone(), blob.clone()).prop_map(|(repo, blob)| Step::Fill { repo, blob }),
        3 => (repo.clone(), blob.clone()).prop_map(|(repo, blob)| Step::Mount { repo, blob }),
        6 => (repo.clone(), manifest.clone(), tag.clone())
            .prop_map(|(repo, manifest, tag)| Step::PutLocal { repo, manifest, tag }),
        4 => (repo.clone(), manifest.clone(), tag.clone())
            .prop_map(|(repo, manifest, tag)| Step::PutMirrored { repo, manifest, tag }),
        2 => (repo.clone(), tag).prop_map(|(repo, tag)| Step::DeleteTag { repo, tag }),
        2 => (repo.clone(), manifest).prop_map(|(repo, manifest)| Step::DeleteManifest { repo, manifest }),
        1 => (repo, blob).prop_map(|(repo, blob)| Step::Unlink { repo, blob }),
        3 => (1..5usize).prop_map(|blobs| Step::Squeeze { blobs }),
        2 => Just(Step::Collect),
        1 => Just(Step::Sweep),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => Just(Step::Rebuild),
    ]
}

/// The pushed content of one repository.
#[derive(Default)]
struct Local {
    members: BTreeSet<usize>,
    manifests: BTreeSet<usize>,
    tags: BTreeMap<usize, usize>,
}

struct Content {
    digest: Digest,
    bytes: Bytes,
}

struct World {
    runtime: Runtime,
    folder: TempDir,
    store: Option<Store>,
    blobs: Vec<Content>,
    manifests: Vec<Content>,
    local: Vec<Local>,
    /// The last target of each mirrored tag.
    mirrored: BTreeMap<(usize, usize), usize>,
}

fn content(bytes: Bytes) -> Content {
    Content { digest: Digest::of(Algorithm::Sha256, &bytes), bytes }
}

fn local(repo: usize) -> RepoId {
    RepoId::local(format!("team/r{repo}").parse().unwrap())
}

fn mirrored(repo: usize) -> RepoId {
    RepoId::new(Scope::Upstream("docker.io".into()), format!("library/r{repo}").parse().unwrap())
}

fn tag(tag: usize) -> Tag {
    TAGS[tag].parse().unwrap()
}

impl World {
    fn new() -> Self {
        let blobs: Vec<Content> = (0..BLOBS).map(|seed| content(random_bytes(seed as u64, BLOB_BYTES))).collect();
        let descriptor = |media_type: &str, blob: &Content| json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.bytes.len()});
        let manifests = MANIFESTS.iter().map(|parts| {
            let layers: Vec<_> = parts[1..].iter().map(|&part| descriptor(OCI_LAYER, &blobs[part])).collect();
            let manifest = json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST,
                "config": descriptor(OCI_CONFIG, &blobs[parts[0]]), "layers": layers,
            });
            content(manifest.to_string().into_bytes().into())
        });
        let manifests = manifests.collect();
        let mut world = Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            folder: tempfile::tempdir().unwrap(),
            store: None,
            blobs,
            manifests,
            local: (0..REPOSITORIES).map(|_| Local::default()).collect(),
            mirrored: BTreeMap::new(),
        };
        world.open();
        world
    }

    fn open(&mut self) {
        let bounds = Bounds { max_size: MAX_SIZE_BYTES, min_free: 0 };
        let settings = StoreSettings { bounds, ..StoreSettings::default() };
        let store = Store::open_with(self.folder.path(), settings).unwrap();
        if store.needs_reconcile() {
            store.reconcile(&AtomicBool::new(false));
        }
        store.restore_recency();
        assert!(store.can_evict());
        self.store = Some(store);
    }

    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    fn put(&self, repo: &RepoId, manifest: usize, tags: Vec<Tag>) -> bool {
        let Content { digest, bytes } = &self.manifests[manifest];
        let parsed = Manifest::parse(bytes).unwrap();
        let new = NewManifest {
            digest: digest.clone(),
            media_type: OCI_MANIFEST.to_owned(),
            bytes: bytes.clone(),
            manifest: parsed,
        };
        match self.runtime.block_on(self.store().put_manifest(repo, new, tags)) {
            Ok(_) => true,
            Err(error) if error.is_full() && !repo.scope.is_local() => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn run(&mut self, step: &Step) {
        let store = self.store();
        match *step {
            Step::Push { repo, blob } => {
                let (id, Content { digest, bytes }) = (local(repo), &self.blobs[blob]);
                self.runtime.block_on(async {
                    let upload = store.create_upload(&id, Algorithm::Sha256).await.unwrap();
                    upload.append(vec![bytes.clone()]).await.unwrap();
                    upload.finish(&id, digest).await.unwrap();
                });
                self.local[repo].members.insert(blob);
            }
            Step::Fill { repo, blob } => {
                let Content { digest, bytes } = &self.blobs[blob];
                self.runtime.block_on(async {
                    match store.begin(Algorithm::Sha256, Some(bytes.len() as u64)).await {
                        Ok(spool) => {
                            spool.write_at(0, vec![bytes.clone()]).await.unwrap();
                            store.commit(spool, digest, &mirrored(repo)).await.unwrap();
                        }
                        Err(error) => assert!(error.is_full(), "{error}"),
                    }
                });
            }
            Step::Mount { repo, blob } => {
                let here = self.is_stored(&self.blobs[blob]);
                let mounted = self.runtime.block_on(store.adopt(&local(repo), &self.blobs[blob].digest)).unwrap();
                assert_eq!(mounted, here);
                if mounted {
                    self.local[repo].members.insert(blob);
                }
            }
            Step::PutLocal { repo, manifest, tag: to } => {
                // The server checks this before the call.
                if MANIFESTS[manifest].iter().all(|part| self.local[repo].members.contains(part)) {
                    assert!(self.put(&local(repo), manifest, vec![tag(to)]));
                    self.local[repo].manifests.insert(manifest);
                    self.local[repo].tags.insert(to, manifest);
                }
            }
            Step::PutMirrored { repo, manifest, tag: to } => {
                if self.put(&mirrored(repo), manifest, vec![tag(to)]) {
                    self.mirrored.insert((repo, to), manifest);
                }
            }
            Step::DeleteTag { repo, tag: which } => {
                let existed = self.runtime.block_on(store.delete_tag(&local(repo), &tag(which))).unwrap();
                assert_eq!(existed, self.local[repo].tags.remove(&which).is_some());
            }
            Step::DeleteManifest { repo, manifest } => {
                let digest = &self.manifests[manifest].digest;
                let existed = self.runtime.block_on(store.delete_manifest(&local(repo), digest)).unwrap();
                assert_eq!(existed, self.local[repo].manifests.remove(&manifest));
                self.local[repo].tags.retain(|_, tagged| *tagged != manifest);
            }
            Step::Unlink { repo, blob } => {
                let needed = self.local[repo].manifests.iter().any(|&manifest| MANIFESTS[manifest].contains(&blob));
                if !needed {
                    let digest = &self.blobs[blob].digest;
                    let existed = self.runtime.block_on(store.unlink_blob(&local(repo), digest)).unwrap();
                    assert_eq!(existed, self.local[repo].members.remove(&blob));
                }
            }
            Step::Squeeze { blobs } => {
                let room = store.begin(Algorithm::Sha256, Some((blobs * BLOB_BYTES) as u64));
                if let Err(error) = self.runtime.block_on(room) {
                    assert!(error.is_full(), "{error}");
                }
            }
            Step::Collect => {
                // The first pass removes links, the second one the content without links.
                for _ in 0..2 {
                    store.collect(NO_GRACE, &AtomicBool::new(false), &|_| {}).unwrap();
                }
                for repository in &mut self.local {
                    let needed: BTreeSet<usize> =
                        repository.manifests.iter().flat_map(|&manifest| MANIFESTS[manifest]).copied().collect();
                    repository.members.retain(|member| needed.contains(member));
                }
                self.only_what_is_named_is_pushed();
            }
            Step::Sweep => drop(store.sweep(Duration::MAX, &AtomicBool::new(false)).unwrap()),
            Step::Restart => {
                self.runtime.block_on(store.close());
                self.reopen(store, false);
            }
            Step::Crash => self.reopen(store, false),
            Step::Rebuild => self.reopen(store, true),
        }
    }

    fn reopen(&mut self, store: Store, without_index: bool) {
        self.store = None;
        // Tasks on the blocking pool hold the store, too.
        self.runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        drop(store);
        if without_index {
            fs::remove_dir_all(self.folder.path().join("index")).unwrap();
        }
        self.open();
    }

    fn is_stored(&self, content: &Content) -> bool {
        let store = self.store();
        self.runtime.block_on(async {
            let Some(blob) = store.blob(&content.digest).await.unwrap() else { return false };
            assert_eq!(blob.len(), content.bytes.len() as u64);
            assert!(
                blob.clone().read().await.unwrap().unwrap_or_default() == content.bytes,
                "stored content is correct"
            );
            true
        })
    }

    fn check(&self) {
        let store = self.store();
        for (repo, model) in self.local.iter().enumerate() {
            let id = local(repo);
            for (index, blob) in self.blobs.iter().enumerate() {
                let member = self.runtime.block_on(store.member(&id, &blob.digest)).unwrap();
                assert_eq!(member.is_some(), model.members.contains(&index), "blob {index} in {id}");
                assert!(member.is_none() || self.is_stored(blob), "pushed content is stored");
            }
            for (index, manifest) in self.manifests.iter().enumerate() {
                let found = self.runtime.block_on(store.manifest(&id, &manifest.digest)).unwrap();
                assert_eq!(found.is_some(), model.manifests.contains(&index), "manifest {index} in {id}");
                assert!(found.is_none_or(|found| found.bytes == manifest.bytes));
            }
            for which in 0..TAGS.len() {
                let found = self.runtime.block_on(store.tag(&id, &tag(which))).unwrap();
                let expected = model.tags.get(&which).map(|&manifest| &self.manifests[manifest].digest);
                assert_eq!(found.as_ref().map(|record| &record.digest), expected, "tag {which} of {id}");
            }
            let listed = self.runtime.block_on(store.tags(&id, "", 10)).unwrap().items;
            assert_eq!(listed, model.tags.keys().map(|&which| TAGS[which].to_owned()).collect::<Vec<_>>());
        }
        for repo in 0..REPOSITORIES {
            for which in 0..TAGS.len() {
                // The manifest may have been evicted. If it is stored, the tag has its last target.
                if let Some(found) = self.runtime.block_on(store.tag(&mirrored(repo), &tag(which))).unwrap() {
                    let expected = self.mirrored[&(repo, which)];
                    assert_eq!(found.digest, self.manifests[expected].digest);
                }
            }
        }
        let [cached, pushed] = bytes_by_class(self.folder.path());
        assert_eq!((store.bytes(Class::Cached), store.bytes(Class::Pushed)), (cached, pushed));
        let names = names_below(&self.folder.path().join("repositories/docker.io"));
        assert!(
            cached + names * NAME_BYTES <= MAX_SIZE_BYTES,
            "{cached} bytes and {names} names are within the bounds"
        );
        assert_eq!(store.used(), cached + names * NAME_BYTES, "the store knows the sum");
    }

    fn only_what_is_named_is_pushed(&self) {
        for (index, blob) in self.blobs.iter().enumerate() {
            let named = self.local.iter().any(|local| local.members.contains(&index));
            assert_eq!(is_pushed_file(self.folder.path(), &blob.digest), named, "blob {index}");
        }
        for (index, manifest) in self.manifests.iter().enumerate() {
            let named = self.local.iter().any(|local| local.manifests.contains(&index));
            assert_eq!(is_pushed_file(self.folder.path(), &manifest.digest), named, "manifest {index}");
        }
    }
}

fn is_pushed_file(data: &Path, digest: &Digest) -> bool {
    let hex = digest.hex();
    let file = fs::metadata(data.join("blobs/sha256").join(&hex[..2]).join(hex));
    file.is_ok_and(|file| file.permissions().mode() & 0o200 == 0)
}

/// Bytes of cached and pushed files.
fn bytes_by_class(data: &Path) -> [u64; 2] {
    let mut bytes = [0; 2];
    for folder in fs::read_dir(data.join("blobs/sha256")).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let file = file.unwrap().metadata().unwrap();
            bytes[usize::from(file.permissions().mode() & 0o200 == 0)] += file.len();
        }
    }
    bytes
}

fn names_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let names = entries.map(|entry| {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { names_below(&entry.path()) } else { 1 }
    });
    names.sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_matches_its_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            world.check();
        }
    }
}
