//! Events: each operation emits exactly its own, after the change is visible, and none if it fails or changes nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use roadstead::events::{EventStream, Events, EvictionReason, Observer, Received, StoreEvent};
use roadstead::oci::{Algorithm, Digest, RepoId};
use roadstead::store::{CollectRules, NAME_BYTES, Store, StoreSettings, TagRecord};

use super::{
    Content, Factory, NO_GRACE, collect, contract, emitted, evict_all, fill, has_manifest, is_member, is_stored, local,
    mirrored, push, put, tag, tagged,
};
use crate::support::image::OCI_MANIFEST;

contract!(
    pushes_and_deletions_emit_their_events,
    fills_and_confirmations_emit_their_events,
    an_eviction_emits_its_events,
    a_collection_emits_its_events,
    a_link_that_a_client_removes_during_a_collection_is_announced_once,
    a_quarantine_emits_its_event,
    failures_and_reads_emit_nothing,
    an_observer_is_called_in_line_for_every_event,
    a_change_is_visible_when_its_event_arrives,
);

fn app() -> RepoId {
    local("team/app")
}

fn library() -> RepoId {
    mirrored("library/app")
}

fn stored(repo: &RepoId, manifest: &Content) -> StoreEvent {
    StoreEvent::ManifestStored {
        repo: repo.clone(),
        digest: manifest.digest.clone(),
        media_type: OCI_MANIFEST.to_owned(),
        bytes: manifest.length(),
    }
}

fn removed(repo: &RepoId, manifest: &Content) -> StoreEvent {
    StoreEvent::ManifestRemoved { repo: repo.clone(), digest: manifest.digest.clone() }
}

fn moved(repo: &RepoId, name: &str, to: &Content, from: Option<&Content>) -> StoreEvent {
    let previous = from.map(|manifest| manifest.digest.clone());
    StoreEvent::TagMoved { repo: repo.clone(), tag: tag(name), digest: to.digest.clone(), previous }
}

fn tag_removed(repo: &RepoId, name: &str) -> StoreEvent {
    StoreEvent::TagRemoved { repo: repo.clone(), tag: tag(name) }
}

fn pushed(repo: &RepoId, blob: &Content) -> StoreEvent {
    StoreEvent::BlobPushed { repo: repo.clone(), digest: blob.digest.clone(), bytes: blob.length() }
}

fn unlinked(repo: &RepoId, blob: &Content) -> StoreEvent {
    StoreEvent::BlobRemoved { repo: repo.clone(), digest: blob.digest.clone() }
}

fn cached(repo: &RepoId, blob: &Content) -> StoreEvent {
    StoreEvent::BlobCached { repo: repo.clone(), digest: blob.digest.clone(), bytes: blob.length() }
}

fn evicted(content: &Content) -> StoreEvent {
    StoreEvent::Evicted { digest: content.digest.clone(), bytes: content.length(), reason: EvictionReason::Size }
}

fn collected(content: &Content) -> StoreEvent {
    StoreEvent::Collected { digest: content.digest.clone(), bytes: content.length() }
}

/// Fails unless exactly these events have been emitted since the last call, in this order.
#[track_caller]
fn assert_emitted(events: &mut EventStream, expected: Vec<StoreEvent>) {
    assert_eq!(emitted(events), expected);
}

/// As [`assert_emitted`], in any order.
#[track_caller]
fn assert_emitted_unordered(events: &mut EventStream, mut expected: Vec<StoreEvent>) {
    let mut found = emitted(events);
    for events in [&mut found, &mut expected] {
        events.sort_by_key(|event| format!("{event:?}"));
    }
    assert_eq!(found, expected);
}

/// Points a mirrored tag to a manifest. Whether it was done.
async fn set_tag(store: &Store, name: &str, old: Option<&Digest>, new: &Content) -> bool {
    let record = TagRecord {
        digest: new.digest.clone(),
        media_type: OCI_MANIFEST.into(),
        confirmed: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    };
    store.compare_and_set_tag(&library(), &tag(name), old.cloned(), record, Duration::ZERO).await.unwrap()
}

async fn pushes_and_deletions_emit_their_events<F: Factory>(factory: F) {
    let store = factory.open();
    let mut events = store.events().subscribe();
    let (app, other, blob) = (app(), local("team/other"), Content::random(1, 100));
    let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[&blob]));
    push(&store, &app, &blob).await;
    assert_emitted(&mut events, vec![pushed(&app, &blob)]);
    assert!(store.adopt(&other, &blob.digest).await.unwrap());
    assert_emitted(&mut events, vec![pushed(&other, &blob)]);
    put(&store, &app, &one, &["v1", "v2"]).await;
    assert_emitted(&mut events, vec![stored(&app, &one), moved(&app, "v1", &one, None), moved(&app, "v2", &one, None)]);
    put(&store, &app, &one, &["v1"]).await;
    assert_emitted(&mut events, vec![stored(&app, &one)]);
    put(&store, &app, &two, &["v1"]).await;
    assert_emitted(&mut events, vec![stored(&app, &two), moved(&app, "v1", &two, Some(&one))]);
    assert!(store.delete_tag(&app, &tag("v1")).await.unwrap());
    assert_emitted(&mut events, vec![tag_removed(&app, "v1")]);
    assert!(store.delete_manifest(&app, &one.digest).await.unwrap());
    assert_emitted(&mut events, vec![tag_removed(&app, "v2"), removed(&app, &one)]);
    assert!(store.unlink_blob(&app, &blob.digest).await.unwrap());
    assert_emitted(&mut events, vec![unlinked(&app, &blob)]);
    // Again, when there is nothing left to do.
    assert!(!store.delete_tag(&app, &tag("v1")).await.unwrap());
    assert!(!store.delete_manifest(&app, &one.digest).await.unwrap());
    assert!(!store.unlink_blob(&app, &blob.digest).await.unwrap());
    assert_emitted(&mut events, vec![]);
}

async fn fills_and_confirmations_emit_their_events<F: Factory>(factory: F) {
    let store = factory.open();
    let mut events = store.events().subscribe();
    let (library, blob) = (library(), Content::random(1, 100));
    let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[&blob]));
    fill(&store, &library, &blob).await.unwrap();
    assert_emitted(&mut events, vec![cached(&library, &blob)]);
    for manifest in [&one, &two] {
        put(&store, &library, manifest, &[]).await;
        assert_emitted(&mut events, vec![stored(&library, manifest)]);
    }
    assert!(set_tag(&store, "v1", None, &one).await);
    assert_emitted(&mut events, vec![moved(&library, "v1", &one, None)]);
    assert!(set_tag(&store, "v1", Some(&one.digest), &one).await);
    assert!(!set_tag(&store, "v1", Some(&two.digest), &two).await);
    assert_emitted(&mut events, vec![]);
    assert!(set_tag(&store, "v1", Some(&one.digest), &two).await);
    assert_emitted(&mut events, vec![moved(&library, "v1", &two, Some(&one))]);
    // Links of mirrored repositories come and go as the cache needs them.
    store.link_blob(&library, &Content::random(2, 10).digest, None).await.unwrap();
    assert!(store.unlink_blob(&library, &blob.digest).await.unwrap());
    assert_emitted(&mut events, vec![]);
}

async fn an_eviction_emits_its_events<F: Factory>(factory: F) {
    let blob = Content::random(1, 50_000);
    let manifest = Content::manifest("m", &[&blob]);
    let max_size = blob.length() + manifest.length() + 8 * NAME_BYTES;
    let store = factory.open_bounded(max_size);
    put(&store, &library(), &manifest, &["v1"]).await;
    fill(&store, &library(), &blob).await.unwrap();
    let mut events = store.events().subscribe();
    evict_all(&store, max_size).await.unwrap();
    let expected =
        vec![tag_removed(&library(), "v1"), removed(&library(), &manifest), evicted(&manifest), evicted(&blob)];
    assert_emitted(&mut events, expected);
}

async fn a_collection_emits_its_events<F: Factory>(factory: F) {
    let store = factory.open();
    let [unused, linked] = [1, 2].map(|seed| Content::random(seed, 100));
    let manifest = Content::manifest("m", &[&linked]);
    for blob in [&unused, &linked] {
        push(&store, &app(), blob).await;
    }
    put(&store, &app(), &manifest, &[]).await;
    let mut events = store.events().subscribe();
    let dry_run = CollectRules { remove: false, ..NO_GRACE };
    assert_eq!(collect(&store, dry_run).await.members, 1);
    assert_emitted(&mut events, vec![]);
    collect(&store, NO_GRACE).await;
    assert_emitted(&mut events, vec![unlinked(&app(), &unused)]);
    collect(&store, NO_GRACE).await;
    assert_emitted(&mut events, vec![collected(&unused)]);
    let untagged = CollectRules { untagged_after: Some(Duration::ZERO), ..NO_GRACE };
    collect(&store, untagged).await;
    assert_emitted(&mut events, vec![removed(&app(), &manifest)]);
    for _ in 0..2 {
        collect(&store, untagged).await;
    }
    let expected = vec![collected(&manifest), unlinked(&app(), &linked), collected(&linked)];
    assert_emitted_unordered(&mut events, expected);
}

async fn a_link_that_a_client_removes_during_a_collection_is_announced_once<F: Factory>(factory: F) {
    let store = factory.open();
    let repos = ["team/one", "team/two"].map(local);
    let blob = Content::random(1, 100);
    for repo in &repos {
        push(&store, repo, &blob).await;
    }
    let mut events = store.events().subscribe();
    let (runtime, digest) = (tokio::runtime::Handle::current(), blob.digest.clone());
    let collected = store.walk(move |store, stop| {
        // The second repository is about to be visited: what is unreferenced in the first one has been found.
        store.collect(NO_GRACE, stop, &|visited| {
            if visited == 2 {
                for repo in ["team/one", "team/two"].map(local) {
                    assert!(runtime.block_on(store.unlink_blob(&repo, &digest)).unwrap());
                }
            }
        })
    });
    let collected = collected.await.unwrap();
    assert_eq!((collected.members, collected.files), (0, 0));
    assert_emitted(&mut events, repos.iter().map(|repo| unlinked(repo, &blob)).collect());
}

async fn a_quarantine_emits_its_event<F: Factory>(factory: F) {
    let store = factory.open();
    let manifest = Content::manifest("m", &[]);
    put(&store, &app(), &manifest, &["v1"]).await;
    let mut events = store.events().subscribe();
    factory.corrupt(&manifest.digest);
    for _ in 0..2 {
        assert_eq!(store.manifest_content(&manifest.digest).await.unwrap(), None);
    }
    assert_emitted(&mut events, vec![StoreEvent::Quarantined { digest: manifest.digest.clone() }]);
}

async fn failures_and_reads_emit_nothing<F: Factory>(factory: F) {
    let store = factory.open_bounded(1 << 20);
    let (blob, manifest) = (Content::random(1, 100), Content::manifest("m", &[]));
    push(&store, &app(), &blob).await;
    put(&store, &app(), &manifest, &["v1"]).await;
    let mut events = store.events().subscribe();
    // Reads.
    assert!(is_member(&store, &app(), &blob).await && is_stored(&store, &blob).await);
    assert!(has_manifest(&store, &app(), &manifest).await && tagged(&store, &app(), "v1").await.is_some());
    store.tags(&app(), "", 10).await.unwrap();
    store.find_pushed(&blob.digest, Box::new(|_| true)).await.unwrap();
    // Failures.
    let wrong = Content { digest: manifest.digest.clone(), ..blob.clone() };
    assert!(fill(&store, &library(), &wrong).await.is_err());
    let upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    upload.append(vec![blob.bytes.clone()]).await.unwrap();
    assert!(upload.finish(&app(), &wrong.digest).await.is_err());
    assert!(store.begin(Algorithm::Sha256, Some(2 << 20)).await.is_err());
    assert!(!store.adopt(&app(), &Content::random(9, 9).digest).await.unwrap());
    // Sessions and spools that end without a result.
    drop(store.begin(Algorithm::Sha256, Some(10)).await.unwrap());
    store.create_upload(&app(), Algorithm::Sha256).await.unwrap().cancel().await.unwrap();
    assert_emitted(&mut events, vec![]);
}

async fn an_observer_is_called_in_line_for_every_event<F: Factory>(factory: F) {
    let observed = Arc::new(Mutex::new(Vec::new()));
    let log = observed.clone();
    let observer: Observer = Box::new(move |event| log.lock().push(event.clone()));
    let events = Events::new(vec![observer]);
    let store = factory.open_with(StoreSettings { events, ..StoreSettings::default() });
    let blob = Content::random(1, 100);
    let manifest = Content::manifest("m", &[&blob]);
    let taken = || std::mem::take(&mut *observed.lock());
    // No subscriber is needed, and nothing is left to be done when the operation has returned.
    push(&store, &app(), &blob).await;
    assert_eq!(taken(), [pushed(&app(), &blob)]);
    fill(&store, &library(), &blob).await.unwrap();
    assert_eq!(taken(), [cached(&library(), &blob)]);
    put(&store, &app(), &manifest, &[]).await;
    assert_eq!(taken(), [stored(&app(), &manifest)]);
    store.delete_manifest(&app(), &manifest.digest).await.unwrap();
    assert_eq!(taken(), [removed(&app(), &manifest)]);
}

async fn a_change_is_visible_when_its_event_arrives<F: Factory>(factory: F) {
    let store = factory.open();
    let mut events = store.events().subscribe();
    let blobs: Vec<Content> = (0..20).map(|seed| Content::random(seed, 100)).collect();
    let manifests: Vec<Content> = blobs.iter().map(|blob| Content::manifest("m", &[blob])).collect();
    let changes = async {
        for (number, (blob, manifest)) in blobs.iter().zip(&manifests).enumerate() {
            let name = format!("v{number}");
            push(&store, &app(), blob).await;
            put(&store, &app(), manifest, &[&name]).await;
            fill(&store, &library(), &Content::random(100 + number as u64, 100)).await.unwrap();
            // Each name is used once, so what an event says stays true until its removal is announced.
        }
    };
    let expected = 4 * blobs.len();
    let checks = async {
        for _ in 0..expected {
            let Some(Received::Event(event)) = events.next().await else { panic!("the stream has ended") };
            match &*event {
                StoreEvent::BlobPushed { repo, digest, .. } | StoreEvent::BlobCached { repo, digest, .. } => {
                    assert!(store.member(repo, digest).await.unwrap().is_some());
                    assert!(store.blob(digest).await.unwrap().is_some());
                }
                StoreEvent::ManifestStored { repo, digest, .. } => {
                    assert!(store.manifest(repo, digest).await.unwrap().is_some());
                }
                StoreEvent::TagMoved { repo, tag, digest, .. } => {
                    assert_eq!(store.tag(repo, tag).await.unwrap().unwrap().digest, *digest);
                }
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::join!(changes, checks);
    for (number, manifest) in manifests.iter().enumerate() {
        store.delete_manifest(&app(), &manifest.digest).await.unwrap();
        assert_emitted(&mut events, vec![tag_removed(&app(), &format!("v{number}")), removed(&app(), manifest)]);
    }
}
