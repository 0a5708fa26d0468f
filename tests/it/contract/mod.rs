//! The contract of the store: every guarantee that is written at the traits `Names`, `Content` and `Uploads`, and at
//! the events, as tests over a [`Factory`].
//!
//! Another implementation of the traits adds a factory, and a line to the macro `contract`. The tests use only what the
//! contract promises, and never look at files.

mod content;
mod events;
mod names;
mod uploads;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use roadstead::events::{EventStream, Received, StoreEvent};
use roadstead::oci::{Algorithm, Digest, Manifest, RepoId, Scope, Tag};
use roadstead::store::{
    Bounds, Class, CollectRules, Collected, FileRange, LockError, NewManifest, OpenError, Store, StoreError,
    StoreSettings,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::image::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, random_bytes};

/// How long anything may take that a test waits for.
const TIMEOUT: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// Stores of one implementation. A factory holds the state of one store, such as its folder; a new factory is empty.
pub trait Factory: Default + Send + Sync + 'static {
    /// Opens the store with the state that earlier ones left, and brings it to the point where it may evict.
    fn open_with(&self, settings: StoreSettings) -> Store;

    /// Changes stored content of a digest without the store's knowledge. Its length stays the same.
    fn corrupt(&self, digest: &Digest);

    fn open(&self) -> Store {
        self.open_with(StoreSettings::default())
    }

    /// Opens a store whose cache holds at most `max_size` bytes.
    fn open_bounded(&self, max_size: u64) -> Store {
        let bounds = Bounds { max_size, min_free: 0 };
        self.open_with(StoreSettings { bounds, ..StoreSettings::default() })
    }

    /// Opens the store again after the process has ended without closing it.
    fn reopen_after_crash(&self, store: Store) -> Store {
        drop(store);
        self.open()
    }

    /// Opens the store again after a clean stop.
    async fn reopen_after_close(&self, store: Store) -> Store {
        store.close().await;
        drop(store);
        self.open()
    }
}

/// The only implementation so far: a data folder.
#[derive(Debug)]
pub struct DataFolder(TempDir);

impl Default for DataFolder {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl DataFolder {
    fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.0.path().join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    }
}

impl Factory for DataFolder {
    fn open_with(&self, mut settings: StoreSettings) -> Store {
        let deadline = Instant::now() + TIMEOUT;
        // Operations that the last store has begun may hold its lock a little longer.
        let store = loop {
            let (bounds, events) = (settings.bounds, settings.events.clone());
            match Store::open_with(self.0.path(), settings) {
                Err(OpenError::Lock(LockError::Held(_))) if Instant::now() < deadline => {
                    std::thread::yield_now();
                    settings = StoreSettings { bounds, events, ..StoreSettings::default() };
                }
                opened => break opened.unwrap(),
            }
        };
        if store.needs_reconcile() {
            store.reconcile(&AtomicBool::new(false));
        }
        store.restore_recency();
        assert!(store.can_evict());
        store
    }

    fn corrupt(&self, digest: &Digest) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.blob_file(digest);
        let permissions = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, permissions).unwrap();
    }
}

/// Instantiates each test for each implementation. A test is an `async fn` that takes a factory.
macro_rules! contract {
    (@of $implementation:ident, $factory:ty, $($test:ident)*) => {
        mod $implementation {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(<$factory>::default()).await;
                }
            )*
        }
    };
    ($($test:ident),* $(,)?) => {
        $crate::contract::contract!(@of data_folder, $crate::contract::DataFolder, $($test)*);
    };
}
use contract;

/// Bytes and their digest.
#[derive(Clone, Debug)]
struct Content {
    digest: Digest,
    bytes: Bytes,
}

impl Content {
    fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(Algorithm::Sha256, &bytes), bytes }
    }

    /// Bytes that differ from seed to seed.
    fn random(seed: u64, length: usize) -> Self {
        Self::of(random_bytes(seed, length))
    }

    /// A manifest with these blobs: its config, and its layers.
    fn manifest(name: &str, blobs: &[&Self]) -> Self {
        Self::manifest_with(json!({"annotations": {"name": name}}), blobs)
    }

    /// As [`Content::manifest`], with a subject.
    fn referrer(name: &str, subject: &Digest) -> Self {
        let subject = json!({"mediaType": OCI_MANIFEST, "digest": subject.to_string(), "size": 2});
        Self::manifest_with(json!({"annotations": {"name": name}, "subject": subject}), &[])
    }

    /// An index that lists manifests.
    fn index(manifests: &[&Self]) -> Self {
        let listed: Vec<Value> = manifests.iter().map(|manifest| manifest.descriptor(OCI_MANIFEST)).collect();
        Self::of(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).to_string().into_bytes())
    }

    fn manifest_with(mut fields: Value, blobs: &[&Self]) -> Self {
        let layers: Vec<Value> = blobs.iter().skip(1).map(|blob| blob.descriptor(OCI_LAYER)).collect();
        fields["schemaVersion"] = 2.into();
        fields["mediaType"] = OCI_MANIFEST.into();
        fields["layers"] = layers.into();
        if let Some(config) = blobs.first() {
            fields["config"] = config.descriptor(OCI_CONFIG);
        }
        Self::of(fields.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }

    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn local(name: &str) -> RepoId {
    RepoId::local(name.parse().unwrap())
}

fn mirrored(name: &str) -> RepoId {
    RepoId::new(Scope::Upstream("docker.io".into()), name.parse().unwrap())
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

/// Pushes a blob to a local repository.
async fn push(store: &Store, repo: &RepoId, blob: &Content) {
    let upload = store.create_upload(repo, Algorithm::Sha256).await.unwrap();
    upload.append(vec![blob.bytes.clone()]).await.unwrap();
    upload.finish(repo, &blob.digest).await.unwrap();
}

/// Stores a blob of a mirrored repository.
async fn fill(store: &Store, repo: &RepoId, blob: &Content) -> Result<(), StoreError> {
    let spool = store.begin(Algorithm::Sha256, Some(blob.length())).await?;
    spool.write_at(0, vec![blob.bytes.clone()]).await?;
    store.commit(spool, &blob.digest, repo).await
}

async fn put(store: &Store, repo: &RepoId, manifest: &Content, tags: &[&str]) {
    let parsed = Manifest::parse(&manifest.bytes).unwrap();
    let new = NewManifest {
        digest: manifest.digest.clone(),
        media_type: parsed.media_type.clone().unwrap(),
        bytes: manifest.bytes.clone(),
        manifest: parsed,
    };
    let stored = store.put_manifest(repo, new, tags.iter().map(|name| tag(name)).collect()).await.unwrap();
    assert_eq!((&stored.digest, &stored.bytes), (&manifest.digest, &manifest.bytes));
}

async fn tagged(store: &Store, repo: &RepoId, name: &str) -> Option<Digest> {
    store.tag(repo, &tag(name)).await.unwrap().map(|record| record.digest)
}

async fn has_manifest(store: &Store, repo: &RepoId, manifest: &Content) -> bool {
    let found = store.manifest(repo, &manifest.digest).await.unwrap();
    found.is_some_and(|found| {
        assert_eq!(found.bytes, manifest.bytes);
        true
    })
}

async fn is_member(store: &Store, repo: &RepoId, blob: &Content) -> bool {
    store.member(repo, &blob.digest).await.unwrap().is_some()
}

/// Whether content is stored. If it is, all of it is read and compared.
async fn is_stored(store: &Store, content: &Content) -> bool {
    match store.blob(&content.digest).await.unwrap() {
        Some(range) => {
            assert!(read(range).await == content.bytes, "stored content is correct");
            true
        }
        None => false,
    }
}

async fn read(mut range: FileRange) -> Bytes {
    let mut all = Vec::new();
    while let Some(bytes) = range.read().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    all.into()
}

/// Removes what is unreferenced as soon as it is found.
const NO_GRACE: CollectRules =
    CollectRules { grace: Duration::ZERO, unreferenced_after: Duration::ZERO, untagged_after: None, remove: true };

/// One pass of the collector.
async fn collect(store: &Store, rules: CollectRules) -> Collected {
    store.walk(move |store, stop| store.collect(rules, stop, &|_| {})).await.unwrap()
}

/// Evicts all cached content that may be evicted, by a reservation of everything that is not taken by names.
async fn evict_all(store: &Store, max_size: u64) -> Result<(), StoreError> {
    let names = store.used() - store.bytes(Class::Cached);
    drop(store.begin(Algorithm::Sha256, Some(max_size - names)).await?);
    until("the room is released", async || store.used() <= names).await;
    Ok(())
}

/// Waits until `done`. A timeout fails the test.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The events that have been emitted since the last call. Never waits: an event that an operation emits is there when
/// the operation returns.
fn emitted(stream: &mut EventStream) -> Vec<StoreEvent> {
    let mut events = Vec::new();
    while let Some(Some(received)) = stream.next().now_or_never() {
        match received {
            Received::Event(event) => events.push((*event).clone()),
            Received::Missed(missed) => panic!("missed {missed} events"),
        }
    }
    events
}
