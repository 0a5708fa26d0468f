//! Each file operation of a push, a fill, an eviction, a collection and a delete fails in turn, alone and with all
//! later ones.
//!
//! Whatever the store returns then: everything that was acknowledged is stored, nothing is stored in part, the sums
//! are those of the files, now and after a restart, and a second attempt succeeds.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{Failing, Fault, Plan, follow};
use crate::events::{Events, StoreEvent};
use crate::oci::{Algorithm, ByteRange, Digest, Manifest, RepoId, Scope, Tag};
use crate::store::{
    Bounds, Class, CollectRules, Finding, NAME_BYTES, NewManifest, Problem, ScrubPart, ScrubWatch, Store, StoreError,
    StoreSettings,
};

mod disk;

const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const ROOM: Bounds = Bounds { max_size: 400 << 10, min_free: 0 };
const BLOB: usize = 16 << 10;

/// What each tag must point to.
type ExpectedTags = BTreeMap<(RepoId, Tag), Option<Digest>>;

struct Scene {
    folder: TempDir,
    bounds: Bounds,
    plan: Arc<Plan>,
    runtime: Runtime,
    store: Option<Store>,
    /// What was acknowledged.
    blobs: BTreeMap<(RepoId, Digest), Bytes>,
    tags: ExpectedTags,
    number: u32,
    events: Events,
    evicted: Arc<AtomicU64>,
}

/// One blob and a manifest that refers to it.
#[derive(Clone)]
struct Image {
    blob: Bytes,
    manifest: Bytes,
}

impl Image {
    /// A different image for each number.
    fn new(number: u32) -> Self {
        let mut blob = vec![0; BLOB];
        fastrand::Rng::with_seed(number.into()).fill(&mut blob);
        let digest = digest_of(&blob);
        let descriptor = |digest: &Digest| format!(r#"{{"mediaType":"x/y","size":{BLOB},"digest":"{digest}"}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{0},"layers":[{0}]}}"#, descriptor(&digest));
        Self { blob: blob.into(), manifest: manifest.into() }
    }

    fn parts(&self) -> Vec<Bytes> {
        vec![self.blob.slice(..BLOB / 3), self.blob.slice(BLOB / 3..)]
    }

    fn new_manifest(&self) -> NewManifest {
        NewManifest {
            digest: digest_of(&self.manifest),
            media_type: MEDIA_TYPE.to_owned(),
            bytes: self.manifest.clone(),
            manifest: Manifest::parse(&self.manifest).unwrap(),
        }
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn local(name: &str) -> RepoId {
    RepoId::local(name.parse().unwrap())
}

fn mirrored(name: &str) -> RepoId {
    RepoId::new(Scope::Upstream("docker.io".into()), name.parse().unwrap())
}

impl Scene {
    fn new() -> Self {
        Self::with_bounds(ROOM)
    }

    fn with_bounds(bounds: Bounds) -> Self {
        let plan = Arc::new(Plan::default());
        follow(&plan);
        let threads = plan.clone();
        // A single blocking thread, so that operations run in the order in which they were started.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .on_thread_start(move || follow(&threads))
            .build()
            .unwrap();
        // In memory where possible: the test counts operations and does not need a disk.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let evicted = Arc::new(AtomicU64::new(0));
        let counter = evicted.clone();
        let events = Events::new(vec![Box::new(move |event| {
            let is_eviction = matches!(event, StoreEvent::Evicted { .. });
            counter.fetch_add(is_eviction.into(), Ordering::Relaxed);
        })]);
        let (blobs, tags) = (BTreeMap::new(), BTreeMap::new());
        let mut scene = Self { folder, bounds, plan, runtime, store: None, blobs, tags, number: 0, events, evicted };
        scene.open();
        scene
    }

    fn store(&self) -> Store {
        self.store.clone().unwrap()
    }

    fn open(&mut self) {
        let settings = StoreSettings { bounds: self.bounds, events: self.events.clone(), ..StoreSettings::default() };
        let store = Store::open_with(self.folder.path(), settings).unwrap();
        if store.needs_reconcile() {
            store.reconcile(&AtomicBool::new(false));
        }
        assert!(!store.needs_reconcile());
        store.restore_recency();
        self.store = Some(store);
    }

    fn reopen(&mut self, clean: bool) {
        if clean {
            let store = self.store();
            self.run(async move { store.close().await });
        }
        self.store = None;
        self.open();
        assert!(self.files("spool").is_empty());
    }

    fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(async {
            let done = task.await;
            tokio::task::spawn_blocking(|| ()).await.unwrap();
            done
        })
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        files_below(&self.folder.path().join(folder))
    }

    // === invariants ===

    fn check(&self) {
        let (mut cached, mut pushed) = (0, 0);
        for path in self.files("blobs") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                digest_of(&bytes).hex() == path.file_name().unwrap().to_str().unwrap(),
                "a file that does not have its digest"
            );
            let writable = path.metadata().unwrap().permissions().mode() & 0o200 != 0;
            *(if writable { &mut cached } else { &mut pushed }) += bytes.len() as u64;
        }
        let store = self.store();
        assert_eq!((store.bytes(Class::Cached), store.bytes(Class::Pushed)), (cached, pushed), "cached and pushed");
        let names = self.mirrored_names() as u64;
        assert_eq!(store.local().cache().space().names(), names, "names of mirrored repositories");
        assert_eq!(store.local().cache().space().used(), cached + names * NAME_BYTES, "nothing is reserved");
        for ((repo, digest), bytes) in &self.blobs {
            let (content, member) = self.run(async { (store.blob(digest).await, store.member(repo, digest).await) });
            assert!(member.unwrap().is_some(), "{repo} has lost {digest}");
            let blob = content.unwrap().unwrap_or_else(|| panic!("{digest} of {repo} is gone"));
            assert_eq!(blob.len(), bytes.len() as u64);
        }
        for ((repo, tag), digest) in &self.tags {
            assert_eq!(self.tag_of(repo, tag), *digest, "{repo}:{tag}");
            let listed = self.run(store.tags(repo, "", 100)).unwrap().items.contains(&tag.to_string());
            assert_eq!(listed, digest.is_some(), "{repo}:{tag} in the list of tags");
        }
    }

    fn mirrored_names(&self) -> usize {
        let repositories = self.folder.path().join("repositories/docker.io");
        if repositories.is_dir() { files_below(&repositories).len() } else { 0 }
    }

    fn tag_of(&self, repo: &RepoId, tag: &Tag) -> Option<Digest> {
        let store = self.store();
        let record = self.run(store.tag(repo, tag)).unwrap()?;
        let manifest = self.run(store.manifest(repo, &record.digest)).unwrap();
        assert!(manifest.is_some(), "{repo}:{tag} means a manifest that is not there");
        Some(record.digest)
    }

    /// The tag must point to what it pointed to before, or to what it was to become.
    fn expect_either(&mut self, repo: &RepoId, tag: &Tag, becomes: Option<&Digest>) {
        let (found, key) = (self.tag_of(repo, tag), (repo.clone(), tag.clone()));
        let before = self.tags.get(&key).cloned().flatten();
        assert!(found == before || found.as_ref() == becomes, "{repo}:{tag}: {found:?}");
        self.tags.insert(key, found);
    }

    fn fails_now(&self) -> Option<Failing> {
        self.plan.counted.lock().failing
    }

    /// Runs without faults, and without counting operations.
    fn aside<T>(&mut self, look: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::take(&mut *self.plan.counted.lock());
        let seen = look(self);
        *self.plan.counted.lock() = before;
        seen
    }
}

/// Runs `step` on what `set_up` makes, once for each of its file operations with that operation failing. `step`
/// records what was acknowledged.
fn with_every_fault(set_up: impl Fn() -> Scene, step: impl Fn(&mut Scene) -> Result<(), StoreError>) {
    for (fault, lasting) in
        [(Fault::Error(Errno::IO), false), (Fault::Error(Errno::IO), true), (Fault::Short, false), (Fault::Short, true)]
    {
        let mut scene = set_up();
        for first in 0.. {
            scene.number += 1;
            let failing = Failing { fault, first, lasting };
            eprintln!("{failing:?}");
            scene.plan.set(Some(failing));
            let done = step(&mut scene);
            let calls = scene.plan.calls();
            scene.plan.set(None);
            if calls <= first {
                assert!(first > 5, "{calls} operations are too few");
                done.unwrap();
                break;
            }
            scene.check();
            // A clean stop only after a single fault: the next start trusts its sums and does not count again.
            scene.reopen(!lasting);
            scene.check();
            step(&mut scene).unwrap();
            scene.check();
        }
        scene.run(scene.store().expire_uploads(Duration::ZERO)).unwrap();
        assert!(scene.files("uploads").is_empty());
        scene.reopen(true);
        scene.check();
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

// === the operations ===

async fn upload(store: &Store, repo: &RepoId, image: &Image) -> Result<(), StoreError> {
    let mut upload = store.create_upload(repo, Algorithm::Sha256).await?;
    upload.keep();
    for part in image.parts() {
        upload.append(vec![part]).await?;
    }
    upload.finish(repo, &digest_of(&image.blob)).await
}

async fn fill(store: &Store, repo: &RepoId, image: &Image) -> Result<(), StoreError> {
    let spool = store.begin(Algorithm::Sha256, Some(BLOB as u64)).await?;
    let mut position = 0;
    for part in image.parts() {
        position = spool.write_at(position, vec![part]).await?;
    }
    store.commit(spool, &digest_of(&image.blob), repo).await
}

fn push(scene: &mut Scene, repo: &RepoId, image: &Image, tagged: &Tag) -> Result<(), StoreError> {
    let (store, manifest) = (scene.store(), digest_of(&image.manifest));
    scene.run(upload(&store, repo, image))?;
    scene.blobs.insert((repo.clone(), digest_of(&image.blob)), image.blob.clone());
    let put = scene.run(store.put_manifest(repo, image.new_manifest(), vec![tagged.clone()])).map(drop);
    scene.aside(|scene| {
        scene.expect_either(repo, tagged, Some(&manifest));
        assert!(put.is_err() || scene.tags[&(repo.clone(), tagged.clone())] == Some(manifest));
    });
    put
}

#[test]
fn a_failed_push_to_a_new_repository_can_be_repeated() {
    with_every_fault(Scene::new, |scene| {
        let image = Image::new(scene.number);
        push(scene, &local(&format!("team/app{}", scene.number)), &image, &tag("v1"))
    });
}

#[test]
fn a_failed_push_leaves_the_tag_old_or_new() {
    with_every_fault(Scene::new, |scene| {
        let image = Image::new(scene.number);
        push(scene, &local("team/app"), &image, &tag("latest"))
    });
}

#[test]
fn a_failed_mount_of_cached_content_can_be_repeated() {
    with_every_fault(Scene::new, |scene| {
        let (store, image) = (scene.store(), Image::new(scene.number));
        let (from, to, digest) = (mirrored("library/app"), local("team/app"), digest_of(&image.blob));
        scene.aside(|scene| scene.run(fill(&store, &from, &image))).unwrap();
        assert!(scene.run(store.adopt(&to, &digest))?);
        scene.blobs.insert((to, digest), image.blob);
        Ok(())
    });
}

/// With a pushed image that must stay.
fn with_an_image() -> Scene {
    let mut scene = Scene::new();
    push(&mut scene, &local("team/app"), &Image::new(0), &tag("kept")).unwrap();
    scene
}

#[test]
fn a_failed_delete_leaves_all_or_nothing() {
    let repo = local("team/app");
    with_every_fault(with_an_image, |scene| {
        let (store, image, going) = (scene.store(), Image::new(scene.number), tag("going"));
        let (blob, manifest) = (digest_of(&image.blob), digest_of(&image.manifest));
        scene.aside(|scene| push(scene, &repo, &image, &going)).unwrap();
        scene.blobs.remove(&(repo.clone(), blob.clone()));
        let deleted = scene.run(async {
            store.delete_tag(&repo, &going).await?;
            store.delete_manifest(&repo, &manifest).await?;
            store.unlink_blob(&repo, &blob).await
        });
        scene.aside(|scene| {
            scene.expect_either(&repo, &going, None);
            let member = scene.run(store.member(&repo, &blob)).unwrap();
            assert!(deleted.is_err() || (member.is_none() && scene.tags[&(repo.clone(), going.clone())].is_none()));
        });
        deleted.map(drop)
    });
}

#[test]
fn a_failed_fill_can_be_repeated() {
    with_every_fault(with_an_image, |scene| {
        let (store, image) = (scene.store(), Image::new(scene.number));
        let repo = mirrored(&format!("library/app{}", scene.number));
        scene.run(async {
            store.put_manifest(&repo, image.new_manifest(), vec![tag("v1")]).await?;
            fill(&store, &repo, &image).await
        })?;
        let there = scene.aside(|scene| scene.run(store.blob(&digest_of(&image.blob)))).unwrap();
        assert!(there.is_some());
        Ok(())
    });
}

/// As [`fill`], with the second half of the blob first.
async fn fill_in_segments(store: &Store, repo: &RepoId, image: &Image) -> Result<(), StoreError> {
    let spool = store.begin(Algorithm::Sha256, Some(BLOB as u64)).await?;
    if spool.allow_gaps().await {
        let half = BLOB / 2;
        spool.write_at(half as u64, vec![image.blob.slice(half..)]).await?;
        spool.write_at(0, vec![image.blob.slice(..half)]).await?;
    } else {
        spool.write_at(0, vec![image.blob.clone()]).await?;
    }
    store.commit(spool, &digest_of(&image.blob), repo).await
}

#[test]
fn a_failed_fill_in_segments_can_be_repeated() {
    with_every_fault(with_an_image, |scene| {
        let (store, image) = (scene.store(), Image::new(scene.number));
        let repo = mirrored(&format!("library/app{}", scene.number));
        scene.run(async {
            store.put_manifest(&repo, image.new_manifest(), vec![tag("v1")]).await?;
            fill_in_segments(&store, &repo, &image).await
        })?;
        let there = scene.aside(|scene| scene.run(store.blob(&digest_of(&image.blob)))).unwrap();
        assert!(there.is_some());
        Ok(())
    });
}

#[test]
fn a_segment_without_room_leaves_the_bytes_of_the_others() {
    let scene = with_an_image();
    let (store, image, repo) = (scene.store(), Image::new(7), mirrored("library/app"));
    scene.run(async {
        let spool = store.begin(Algorithm::Sha256, Some(BLOB as u64)).await.unwrap();
        assert!(spool.allow_gaps().await);
        let quarter = BLOB / 4;
        let part = |n: usize| image.blob.slice(n * quarter..(n + 1) * quarter);
        let written = [3, 1];
        for n in written {
            spool.write_at((n * quarter) as u64, vec![part(n)]).await.unwrap();
        }
        for n in [2, 0] {
            // Half of the segment is written, and then there is no room.
            scene.plan.set(Some(Failing { fault: Fault::Short, first: 0, lasting: true }));
            let error = spool.write_at((n * quarter) as u64, vec![part(n)]).await.unwrap_err();
            scene.plan.set(None);
            assert!(error.is_full(), "{error}");
            for n in written {
                let bytes = ByteRange { start: (n * quarter) as u64, end: ((n + 1) * quarter) as u64 };
                let read = spool.range_to(BLOB as u64).with_range(bytes).read().await.unwrap().unwrap();
                assert!(read == part(n), "segment {n}");
            }
        }
        for n in [0, 2] {
            spool.write_at((n * quarter) as u64, vec![part(n)]).await.unwrap();
        }
        store.commit(spool, &digest_of(&image.blob), &repo).await.unwrap();
    });
    scene.check();
    assert!(scene.run(store.blob(&digest_of(&image.blob))).unwrap().is_some());
}

fn fill_one(scene: &Scene, number: u32) -> Result<(), StoreError> {
    let (store, image, repo) = (scene.store(), Image::new(number), mirrored(&format!("library/app{number}")));
    scene.run(async {
        store.put_manifest(&repo, image.new_manifest(), vec![tag("v1")]).await?;
        fill(&store, &repo, &image).await
    })
}

fn with_a_full_cache() -> Scene {
    let scene = with_an_image();
    for number in 1000..1030 {
        fill_one(&scene, number).unwrap();
    }
    assert!(scene.evicted.load(Ordering::Relaxed) > 0);
    scene
}

#[test]
fn a_failed_eviction_keeps_sums_and_bounds() {
    with_every_fault(with_a_full_cache, |scene| {
        let number = 2 * scene.number + u32::from(scene.fails_now().is_none());
        let done = fill_one(scene, number);
        assert!(scene.store().local().cache().space().used() <= ROOM.max_size);
        done
    });
}

#[test]
fn a_failed_collection_keeps_referenced_content() {
    let repo = local("team/app");
    let rules = CollectRules {
        grace: Duration::ZERO,
        unreferenced_after: Duration::ZERO,
        untagged_after: Some(Duration::ZERO),
        remove: true,
    };
    with_every_fault(with_an_image, |scene| {
        let (store, image, going) = (scene.store(), Image::new(scene.number), tag("going"));
        scene.aside(|scene| {
            push(scene, &repo, &image, &going).unwrap();
            scene.blobs.remove(&(repo.clone(), digest_of(&image.blob)));
            assert!(scene.run(store.delete_tag(&repo, &going)).unwrap());
            scene.tags.insert((repo.clone(), going), None);
        });
        // First the manifest, then the blob's membership, then the content of both.
        for _ in 0..4 {
            store.collect(rules, &AtomicBool::new(false), &|_| ())?;
        }
        if scene.fails_now().is_none() {
            assert_eq!(scene.files("blobs").len(), 2, "the kept image is all that is left");
        }
        Ok(())
    });
}

/// Records the findings of a scrub.
#[derive(Default)]
struct Findings(Vec<Problem>);

impl ScrubWatch for Findings {
    fn may_read(&mut self, _bytes: u64) -> bool {
        true
    }

    fn name_checked(&mut self) {}

    fn blob_checked(&mut self, _digest: &Digest, _bytes: u64) {}

    fn found(&mut self, finding: Finding) {
        self.0.push(finding.problem);
    }
}

#[test]
fn a_scrub_keeps_names_that_it_cannot_read() {
    let scene = with_an_image();
    let scrub = || scene.run(scene.store().scrub(ScrubPart::Names, true, Findings::default()));
    let mut unreadable = 0;
    for first in 0.. {
        scene.plan.set(Some(Failing { fault: Fault::Error(Errno::IO), first, lasting: false }));
        let scrubbed = scrub();
        let calls = scene.plan.calls();
        scene.plan.set(None);
        assert!(scene.files("quarantine").is_empty(), "{first}");
        if calls <= first {
            break;
        }
        unreadable += scrubbed.map_or(0, |(_, findings)| findings.0.len());
    }
    assert!(unreadable >= 3, "{unreadable}: a tag, a manifest and a blob");
    scene.check();

    let tag = scene.folder.path().join("repositories/local/team/app/_tags/kept");
    std::fs::write(tag, b"\xff\xfe").unwrap();
    assert_eq!(scrub().unwrap().1.0, [Problem::Name]);
    assert_eq!(scene.files("quarantine").len(), 1, "what holds no text is damaged");
}
