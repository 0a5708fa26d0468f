//! Guarantees of the trait `Content`.

use std::time::Duration;

use bytes::Bytes;
use roadstead::oci::{Algorithm, ByteRange, Digest};
use roadstead::store::{Class, NAME_BYTES, StoreError};

use super::{
    Content, Factory, NO_GRACE, collect, contract, emitted, evict_all, fill, has_manifest, is_member, is_stored, local,
    mirrored, push, put, read, tagged, until,
};
use crate::scene::KIB;

contract!(
    content_appears_complete_or_not_at_all,
    received_content_can_be_read_before_its_commit,
    received_bytes_may_come_in_any_order_each_once,
    content_with_missing_bytes_is_not_stored,
    a_commit_with_a_wrong_digest_stores_nothing,
    a_dropped_spool_leaves_nothing_and_releases_its_room,
    two_commits_of_one_digest_store_it_once,
    cached_content_is_there_after_a_clean_stop,
    content_is_found_by_each_digest_algorithm,
    a_corrupt_manifest_counts_as_missing,
    an_open_range_stays_readable_after_a_removal,
    content_with_a_reader_is_not_evicted,
    pushed_content_is_never_evicted,
    a_fill_of_pushed_content_keeps_it_pushed,
    the_oldest_content_is_evicted_and_no_more_than_needed,
    an_evicted_manifest_takes_its_names_along,
    content_larger_than_the_cache_is_refused_and_nothing_is_evicted,
    room_is_reserved_before_content_arrives,
    only_stored_content_is_mounted,
    mounted_content_is_pushed_and_durable,
    a_mount_and_an_eviction_do_not_lose_content,
    a_mount_and_a_collection_do_not_lose_content,
    content_that_another_repository_links_is_not_collected,
);

const BLOB_BYTES: usize = 16 * KIB;
/// Room for three blobs and the names of their repositories.
const MAX_SIZE: u64 = 3 * BLOB_BYTES as u64 + 8 * NAME_BYTES;

fn blob(seed: u64) -> Content {
    Content::random(seed, BLOB_BYTES)
}

// === atomicity ===

async fn content_appears_complete_or_not_at_all<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, blob) = (mirrored("library/app"), blob(1));
    let spool = store.begin(Algorithm::Sha256, None).await.unwrap();
    for part in [5000..BLOB_BYTES, 0..5000] {
        spool.write_at(part.start as u64, vec![blob.bytes.slice(part)]).await.unwrap();
        assert!(!is_stored(&store, &blob).await && !is_member(&store, &library, &blob).await);
    }
    store.commit(spool, &blob.digest, &library).await.unwrap();
    assert!(is_stored(&store, &blob).await && is_member(&store, &library, &blob).await);
}

async fn received_content_can_be_read_before_its_commit<F: Factory>(factory: F) {
    let store = factory.open();
    let blob = blob(1);
    let spool = store.begin(Algorithm::Sha256, None).await.unwrap();
    assert_eq!(spool.write_at(0, vec![blob.bytes.slice(..5000)]).await.unwrap(), 5000);
    assert_eq!(
        read(spool.range_to(5000).with_range(ByteRange { start: 10, end: 5000 })).await,
        blob.bytes.slice(10..5000)
    );
    let rest = spool.write_at(5000, vec![blob.bytes.slice(5000..9000), blob.bytes.slice(9000..)]).await.unwrap();
    assert_eq!((rest, spool.length()), (blob.length(), blob.length()));
    assert_eq!(spool.digest().await.unwrap(), blob.digest);
    let content = spool.range_to(blob.length());
    store.commit(spool, &blob.digest, &mirrored("library/app")).await.unwrap();
    assert_eq!(read(content).await, blob.bytes, "also after the commit");
}

async fn received_bytes_may_come_in_any_order_each_once<F: Factory>(factory: F) {
    let store = factory.open();
    let (blob, library) = (blob(1), mirrored("library/app"));
    let spool = store.begin(Algorithm::Sha256, Some(blob.length())).await.unwrap();
    assert!(spool.may_have_gaps() && spool.allow_gaps().await);
    assert_eq!(spool.write_at(9000, vec![blob.bytes.slice(9000..)]).await.unwrap(), blob.length());
    assert_eq!(spool.length(), 0);
    spool.write_at(0, vec![blob.bytes.slice(..5000)]).await.unwrap();
    assert_eq!((spool.length(), spool.digest().await.unwrap()), (5000, Content::of(blob.bytes.slice(..5000)).digest));
    for twice in [0, 4999, 8999, 9000] {
        assert!(spool.write_at(twice, vec![Bytes::from_static(&[0; 2])]).await.is_err(), "{twice}");
    }
    let far = ByteRange { start: 9000, end: blob.length() };
    assert_eq!(read(spool.range_to(0).with_range(far)).await, blob.bytes.slice(9000..));
    spool.write_at(5000, vec![blob.bytes.slice(5000..9000)]).await.unwrap();
    assert_eq!((spool.length(), spool.digest().await.unwrap()), (blob.length(), blob.digest.clone()));
    store.commit(spool, &blob.digest, &library).await.unwrap();
    assert!(is_stored(&store, &blob).await);
}

async fn content_with_missing_bytes_is_not_stored<F: Factory>(factory: F) {
    let store = factory.open();
    let (whole, library) = (blob(1), mirrored("library/app"));
    let begin = Content::of(whole.bytes.slice(..5000));
    let spool = store.begin(Algorithm::Sha256, Some(whole.length())).await.unwrap();
    assert!(spool.allow_gaps().await);
    spool.write_at(0, vec![whole.bytes.slice(..5000)]).await.unwrap();
    spool.write_at(5001, vec![whole.bytes.slice(5001..)]).await.unwrap();
    assert!(matches!(store.commit(spool, &begin.digest, &library).await, Err(StoreError::DigestMismatch { .. })));
    assert!(!is_stored(&store, &begin).await && !is_stored(&store, &whole).await);
}

async fn a_commit_with_a_wrong_digest_stores_nothing<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, received, expected) = (mirrored("library/app"), blob(1), blob(2));
    let mut events = store.events().subscribe();
    let before = store.used();
    let spool = store.begin(Algorithm::Sha256, Some(received.length())).await.unwrap();
    spool.write_at(0, vec![received.bytes.clone()]).await.unwrap();
    match store.commit(spool, &expected.digest, &library).await {
        Err(StoreError::DigestMismatch { digest, length }) => {
            assert_eq!((digest, length), (received.digest.clone(), received.length()));
        }
        other => panic!("{other:?}"),
    }
    for content in [&received, &expected] {
        assert!(!is_stored(&store, content).await && !is_member(&store, &library, content).await);
    }
    assert_eq!(emitted(&mut events), []);
    until("the room is released", async || store.used() == before).await;
    assert_eq!(store.bytes(Class::Cached), 0);
}

async fn a_dropped_spool_leaves_nothing_and_releases_its_room<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let spool = store.begin(Algorithm::Sha256, Some(MAX_SIZE)).await.unwrap();
    spool.write_at(0, vec![Bytes::from_static(b"some")]).await.unwrap();
    assert_eq!(store.used(), MAX_SIZE);
    drop(spool);
    until("the room is released", async || store.used() == 0).await;
    fill(&store, &mirrored("library/app"), &blob(1)).await.unwrap();
}

async fn two_commits_of_one_digest_store_it_once<F: Factory>(factory: F) {
    let store = factory.open();
    for round in 0..20 {
        let blob = blob(100 + round);
        let [one, two, three] = ["one", "two", "three"].map(|name| mirrored(&format!("library/{name}")));
        let (first, second, third) =
            tokio::join!(fill(&store, &one, &blob), fill(&store, &two, &blob), fill(&store, &three, &blob));
        first.and(second).and(third).unwrap();
        for repo in [&one, &two, &three] {
            assert!(is_member(&store, repo, &blob).await);
        }
        assert!(is_stored(&store, &blob).await);
        assert_eq!(store.bytes(Class::Cached), (round + 1) * blob.length(), "it counts once");
    }
}

async fn cached_content_is_there_after_a_clean_stop<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, blob) = (mirrored("library/app"), blob(1));
    fill(&store, &library, &blob).await.unwrap();
    let store = factory.reopen_after_close(store).await;
    assert!(is_stored(&store, &blob).await && is_member(&store, &library, &blob).await);
    assert_eq!(store.bytes(Class::Cached), blob.length());
}

// === integrity ===

async fn content_is_found_by_each_digest_algorithm<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, bytes) = (mirrored("library/app"), blob(1).bytes);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let content = Content { digest: Digest::of(algorithm, &bytes), bytes: bytes.clone() };
        let spool = store.begin(Algorithm::Sha256, None).await.unwrap();
        spool.write_at(0, vec![bytes.clone()]).await.unwrap();
        assert!(!is_stored(&store, &content).await);
        store.commit(spool, &content.digest, &library).await.unwrap();
        assert!(is_stored(&store, &content).await);
    }
}

async fn a_corrupt_manifest_counts_as_missing<F: Factory>(factory: F) {
    let store = factory.open();
    let (app, manifest) = (local("team/app"), Content::manifest("m", &[]));
    put(&store, &app, &manifest, &["v1"]).await;
    assert_eq!(store.manifest_content(&manifest.digest).await.unwrap(), Some(manifest.bytes.clone()));
    let store = factory.reopen_after_crash(store);
    factory.corrupt(&manifest.digest);
    assert_eq!(store.manifest_content(&manifest.digest).await.unwrap(), None);
    assert!(!has_manifest(&store, &app, &manifest).await && !is_stored(&store, &manifest).await);
    put(&store, &app, &manifest, &["v1"]).await;
    assert!(has_manifest(&store, &app, &manifest).await, "another push repairs it");
}

// === readers ===

async fn an_open_range_stays_readable_after_a_removal<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (app, pushed) = (local("team/app"), blob(1));
    push(&store, &app, &pushed).await;
    let range = store.blob(&pushed.digest).await.unwrap().unwrap();
    assert!(store.unlink_blob(&app, &pushed.digest).await.unwrap());
    assert_eq!(collect(&store, NO_GRACE).await.files, 1);
    assert!(!is_stored(&store, &pushed).await);
    assert_eq!(read(range).await, pushed.bytes);
}

async fn content_with_a_reader_is_not_evicted<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let [one, two] = [1, 2].map(blob);
    for blob in [&one, &two] {
        fill(&store, &mirrored("library/app"), blob).await.unwrap();
    }
    let reader = store.blob(&one.digest).await.unwrap().unwrap();
    let refused = evict_all(&store, MAX_SIZE).await;
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    assert!(is_stored(&store, &one).await);
    assert!(!is_stored(&store, &two).await, "content without a reader makes way");
    assert_eq!(read(reader).await, one.bytes);
    evict_all(&store, MAX_SIZE).await.unwrap();
    assert!(!is_stored(&store, &one).await, "its reader is gone");
}

// === classes ===

async fn pushed_content_is_never_evicted<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (app, pushed, cached) = (local("team/app"), blob(1), blob(2));
    let manifest = Content::manifest("m", &[&pushed]);
    push(&store, &app, &pushed).await;
    put(&store, &app, &manifest, &["v1"]).await;
    fill(&store, &mirrored("library/app"), &cached).await.unwrap();
    evict_all(&store, MAX_SIZE).await.unwrap();
    assert!(!is_stored(&store, &cached).await);
    assert!(is_stored(&store, &pushed).await && has_manifest(&store, &app, &manifest).await);
    let store = factory.reopen_after_crash(store);
    assert!(is_stored(&store, &pushed).await && has_manifest(&store, &app, &manifest).await);
}

async fn a_fill_of_pushed_content_keeps_it_pushed<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (app, library, blob) = (local("team/app"), mirrored("library/app"), blob(1));
    push(&store, &app, &blob).await;
    fill(&store, &library, &blob).await.unwrap();
    assert_eq!((store.bytes(Class::Pushed), store.bytes(Class::Cached)), (blob.length(), 0));
    assert!(is_member(&store, &app, &blob).await && is_member(&store, &library, &blob).await);
    evict_all(&store, MAX_SIZE).await.unwrap();
    assert!(is_stored(&store, &blob).await);
    // The other way round: what was cached first is pushed content after a push.
    let other = Content::random(2, BLOB_BYTES);
    fill(&store, &library, &other).await.unwrap();
    push(&store, &app, &other).await;
    assert_eq!((store.bytes(Class::Pushed), store.bytes(Class::Cached)), (2 * blob.length(), 0));
}

// === room ===

async fn the_oldest_content_is_evicted_and_no_more_than_needed<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let library = mirrored("library/app");
    let blobs = [1, 2, 3].map(blob);
    for blob in &blobs {
        fill(&store, &library, blob).await.unwrap();
    }
    let free = MAX_SIZE - store.used();
    let spool = store.begin(Algorithm::Sha256, Some(free + 1)).await.unwrap();
    let stored = [&blobs[0], &blobs[1], &blobs[2]].map(|blob| blob.digest.clone());
    let mut left = Vec::new();
    for digest in stored {
        left.push(store.blob(&digest).await.unwrap().is_some());
    }
    assert_eq!(left, [false, true, true]);
    assert!(store.used() <= MAX_SIZE);
    drop(spool);
}

async fn an_evicted_manifest_takes_its_names_along<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (library, config) = (mirrored("library/app"), blob(1));
    let manifest = Content::manifest("m", &[&config]);
    put(&store, &library, &manifest, &["v1"]).await;
    fill(&store, &library, &config).await.unwrap();
    assert_eq!(tagged(&store, &library, "v1").await.as_ref(), Some(&manifest.digest));
    evict_all(&store, MAX_SIZE).await.unwrap();
    assert_eq!(tagged(&store, &library, "v1").await, None);
    assert!(!has_manifest(&store, &library, &manifest).await);
    assert!(!store.has_manifest(&library, &manifest.digest).await.unwrap());
    assert_eq!(store.tags(&library, "", 10).await.unwrap().items, [""; 0]);
}

async fn content_larger_than_the_cache_is_refused_and_nothing_is_evicted<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (library, blob) = (mirrored("library/app"), blob(1));
    fill(&store, &library, &blob).await.unwrap();
    let mut events = store.events().subscribe();
    let refused = store.begin(Algorithm::Sha256, Some(MAX_SIZE + 1)).await;
    assert!(matches!(refused, Err(StoreError::NoRoom { bytes, .. }) if bytes == MAX_SIZE + 1), "{refused:?}");
    assert!(is_stored(&store, &blob).await);
    assert_eq!(emitted(&mut events), []);
}

async fn room_is_reserved_before_content_arrives<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let first = store.begin(Algorithm::Sha256, Some(MAX_SIZE - 100)).await.unwrap();
    let refused = store.begin(Algorithm::Sha256, Some(101)).await;
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    let second = store.begin(Algorithm::Sha256, Some(100)).await.unwrap();
    assert_eq!(store.used(), MAX_SIZE);
    drop((first, second));
    until("the room is released", async || store.used() == 0).await;
}

// === mounts ===

async fn only_stored_content_is_mounted<F: Factory>(factory: F) {
    let store = factory.open();
    let (app, blob) = (local("team/app"), blob(1));
    let mut events = store.events().subscribe();
    assert!(!store.adopt(&app, &blob.digest).await.unwrap());
    assert!(!is_member(&store, &app, &blob).await);
    assert_eq!(emitted(&mut events), []);
    fill(&store, &mirrored("library/app"), &blob).await.unwrap();
    assert!(store.adopt(&app, &blob.digest).await.unwrap());
    assert!(is_member(&store, &app, &blob).await);
}

async fn mounted_content_is_pushed_and_durable<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (app, library, blob) = (local("team/app"), mirrored("library/app"), blob(1));
    fill(&store, &library, &blob).await.unwrap();
    assert!(store.adopt(&app, &blob.digest).await.unwrap());
    assert_eq!((store.bytes(Class::Pushed), store.bytes(Class::Cached)), (blob.length(), 0));
    evict_all(&store, MAX_SIZE).await.unwrap();
    assert!(is_stored(&store, &blob).await);
    let store = factory.reopen_after_crash(store);
    assert!(is_member(&store, &app, &blob).await && is_stored(&store, &blob).await);
    assert_eq!(store.bytes(Class::Pushed), blob.length());
}

async fn a_mount_and_an_eviction_do_not_lose_content<F: Factory>(factory: F) {
    let store = factory.open_bounded(MAX_SIZE);
    let (app, library) = (local("team/app"), mirrored("library/app"));
    for round in 0..40 {
        let blob = blob(200 + round);
        fill(&store, &library, &blob).await.unwrap();
        // The reservation fits only if the blob is evicted, or is pushed content.
        let room = MAX_SIZE - store.used() + 1;
        let (mounted, evicted) =
            tokio::join!(store.adopt(&app, &blob.digest), store.begin(Algorithm::Sha256, Some(room)));
        let mounted = mounted.unwrap();
        assert_eq!(is_stored(&store, &blob).await, mounted, "round {round}");
        assert_eq!(is_member(&store, &app, &blob).await, mounted, "round {round}");
        drop(evicted);
        until("the room is released", async || store.used() <= NAME_BYTES).await;
        // The link in the mirrored repository would take room in later rounds.
        store.unlink_blob(&library, &blob.digest).await.unwrap();
    }
}

async fn a_mount_and_a_collection_do_not_lose_content<F: Factory>(factory: F) {
    let store = factory.open();
    let [one, two] = ["team/one", "team/two"].map(local);
    let mut mounts = 0;
    for round in 0..40 {
        let blob = blob(300 + round);
        push(&store, &one, &blob).await;
        store.unlink_blob(&one, &blob.digest).await.unwrap();
        let (mounted, _) = tokio::join!(store.adopt(&two, &blob.digest), collect(&store, NO_GRACE));
        let mounted = mounted.unwrap();
        // A collection that began before the mount may find the link without a manifest, and remove it; the content
        // then goes in a later pass. What must not be is a link to content that is gone.
        let linked = is_member(&store, &two, &blob).await;
        assert!(!linked || is_stored(&store, &blob).await, "round {round}");
        assert!(!mounted || is_stored(&store, &blob).await, "round {round}: a mount has succeeded");
        assert!(mounted || !linked, "round {round}");
        mounts += usize::from(mounted);
        // Not to be a candidate in later rounds.
        store.unlink_blob(&two, &blob.digest).await.unwrap();
        collect(&store, NO_GRACE).await;
        assert!(!is_stored(&store, &blob).await, "round {round}");
    }
    assert!(mounts > 0, "some mounts come first");
}

async fn content_that_another_repository_links_is_not_collected<F: Factory>(factory: F) {
    let store = factory.open();
    let [one, two] = ["team/one", "team/two"].map(local);
    let blob = blob(1);
    let manifest = Content::manifest("m", &[&blob]);
    for repo in [&one, &two] {
        push(&store, repo, &blob).await;
        put(&store, repo, &manifest, &["v1"]).await;
    }
    assert!(store.delete_manifest(&one, &manifest.digest).await.unwrap());
    let collected = collect(&store, NO_GRACE).await;
    assert_eq!((collected.members, collected.files), (1, 0), "the link of the first repository goes");
    assert!(has_manifest(&store, &two, &manifest).await && is_stored(&store, &blob).await);
    assert!(store.delete_manifest(&two, &manifest.digest).await.unwrap());
    // One pass for the link, another one for the content.
    let passes = [collect(&store, NO_GRACE).await, collect(&store, NO_GRACE).await];
    assert_eq!(passes.map(|pass| pass.members), [1, 0]);
    assert_eq!(passes.iter().map(|pass| pass.files).sum::<u64>(), 2);
    assert!(!is_stored(&store, &blob).await && !is_stored(&store, &manifest).await);
    // A lease holds back what would go.
    let held = Content::random(9, 10);
    push(&store, &one, &held).await;
    store.unlink_blob(&one, &held.digest).await.unwrap();
    assert!(!store.hold_deletions("backup", Duration::from_secs(60)));
    assert_eq!(collect(&store, NO_GRACE).await.files, 0);
    assert!(store.release_deletions("backup"));
    assert_eq!(collect(&store, NO_GRACE).await.files, 1);
}
