//! Guarantees of the trait `Uploads`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use roadstead::oci::{Algorithm, Digest, RepoId};
use roadstead::store::{Store, StoreError, StoreSettings, Upload, UploadBounds, UploadError};

use super::{Content, Factory, HOUR, contract, emitted, is_member, is_stored, local, mirrored, until};
use crate::scene::KIB;

contract!(
    a_kept_session_survives_a_crash_with_what_it_received,
    a_session_that_is_not_kept_ends_when_it_is_dropped,
    one_request_at_a_time_holds_a_session,
    a_write_ends_after_its_request_is_gone,
    a_finished_upload_is_a_durable_blob_of_its_repository,
    an_upload_with_a_wrong_digest_stores_nothing_and_ends,
    a_cancelled_session_is_gone,
    a_session_is_unknown_in_other_repositories,
    an_idle_session_expires_and_a_held_one_does_not,
    an_upload_may_be_finished_with_another_digest_algorithm,
    an_empty_blob_can_be_uploaded,
    a_push_without_room_is_refused,
    a_last_chunk_without_its_end_leaves_nothing,
    sessions_that_are_held_never_give_way,
    two_uploads_of_one_digest_both_succeed,
);

const BLOB_BYTES: usize = 20 * KIB;

fn app() -> RepoId {
    local("team/app")
}

fn blob() -> Content {
    Content::random(1, BLOB_BYTES)
}

/// Opens a session, keeps it, and leaves it with `bytes`. Its id.
async fn leave(store: &Store, bytes: Bytes) -> String {
    let mut upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    upload.keep();
    let length = bytes.len() as u64;
    assert_eq!(upload.append(vec![bytes]).await.unwrap(), length);
    upload.id().to_string()
}

async fn find(store: &Store, id: &str) -> Result<Upload, UploadError> {
    store.upload(&app(), id).await
}

async fn is_unknown(store: &Store, id: &str) -> bool {
    matches!(find(store, id).await, Err(UploadError::Unknown))
}

async fn a_kept_session_survives_a_crash_with_what_it_received<F: Factory>(factory: F) {
    let (store, blob) = (factory.open(), blob());
    let id = leave(&store, blob.bytes.slice(..5000)).await;
    let store = factory.reopen_after_crash(store);
    let upload = find(&store, &id).await.unwrap();
    assert_eq!((upload.id().to_string(), upload.length()), (id.clone(), 5000));
    assert_eq!(upload.append(vec![blob.bytes.slice(5000..)]).await.unwrap(), blob.length());
    upload.finish(&app(), &blob.digest).await.unwrap();
    assert!(is_stored(&store, &blob).await && is_member(&store, &app(), &blob).await);
    assert!(is_unknown(&store, &id).await, "a finished session has ended");
}

async fn a_session_that_is_not_kept_ends_when_it_is_dropped<F: Factory>(factory: F) {
    let store = factory.open();
    let upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    upload.append(vec![blob().bytes]).await.unwrap();
    let id = upload.id().to_string();
    drop(upload);
    assert!(is_unknown(&store, &id).await);
    let id = leave(&store, blob().bytes).await;
    drop(find(&store, &id).await.unwrap());
    assert!(find(&store, &id).await.is_ok(), "a session that was kept once stays");
}

async fn one_request_at_a_time_holds_a_session<F: Factory>(factory: F) {
    let store = factory.open();
    let id = leave(&store, blob().bytes).await;
    let held = find(&store, &id).await.unwrap();
    assert!(matches!(find(&store, &id).await, Err(UploadError::Busy)));
    drop(held);
    let finds = (0..8).map(|_| {
        let (store, id) = (store.clone(), id.clone());
        tokio::spawn(async move { find(&store, &id).await })
    });
    let mut found = Vec::new();
    for find in finds.collect::<Vec<_>>() {
        match find.await.unwrap() {
            Ok(upload) => found.push(upload),
            Err(error) => assert!(matches!(error, UploadError::Busy), "{error}"),
        }
    }
    assert_eq!(found.len(), 1);
}

async fn a_write_ends_after_its_request_is_gone<F: Factory>(factory: F) {
    let (store, blob) = (factory.open(), blob());
    for cut in [1, 5000, BLOB_BYTES] {
        let id = leave(&store, Bytes::new()).await;
        let upload = find(&store, &id).await.unwrap();
        // The first poll begins the write, and then the request goes away.
        let _ = upload.append(vec![blob.bytes.slice(..cut)]).now_or_never();
        drop(upload);
        let mut upload = None;
        until("the session is free again", async || {
            match find(&store, &id).await {
                Ok(found) => upload = Some(found),
                Err(error) => assert!(matches!(error, UploadError::Busy), "{error}"),
            }
            upload.is_some()
        })
        .await;
        let upload = upload.unwrap();
        assert_eq!(upload.length(), cut as u64, "all of the write has taken effect");
        upload.append(vec![blob.bytes.slice(cut..)]).await.unwrap();
        upload.finish(&app(), &blob.digest).await.unwrap();
    }
}

async fn a_finished_upload_is_a_durable_blob_of_its_repository<F: Factory>(factory: F) {
    let (store, blob) = (factory.open(), blob());
    let upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    for part in [0..1, 1..7000, 7000..BLOB_BYTES] {
        let end = part.end as u64;
        assert_eq!(upload.append(vec![blob.bytes.slice(part)]).await.unwrap(), end);
        assert!(!is_stored(&store, &blob).await, "nothing is visible before the end");
    }
    upload.finish(&app(), &blob.digest).await.unwrap();
    let store = factory.reopen_after_crash(store);
    assert!(is_stored(&store, &blob).await && is_member(&store, &app(), &blob).await);
    assert!(!is_member(&store, &local("team/other"), &blob).await);
}

async fn an_upload_with_a_wrong_digest_stores_nothing_and_ends<F: Factory>(factory: F) {
    let (store, blob, expected) = (factory.open(), blob(), Content::random(2, 100));
    let mut events = store.events().subscribe();
    let id = leave(&store, blob.bytes.clone()).await;
    match find(&store, &id).await.unwrap().finish(&app(), &expected.digest).await {
        Err(StoreError::DigestMismatch { digest, length }) => {
            assert_eq!((digest, length), (blob.digest.clone(), blob.length()));
        }
        other => panic!("{other:?}"),
    }
    for content in [&blob, &expected] {
        assert!(!is_stored(&store, content).await && !is_member(&store, &app(), content).await);
    }
    assert!(is_unknown(&store, &id).await);
    assert_eq!(emitted(&mut events), []);
}

async fn a_cancelled_session_is_gone<F: Factory>(factory: F) {
    let store = factory.open();
    let id = leave(&store, blob().bytes).await;
    find(&store, &id).await.unwrap().cancel().await.unwrap();
    assert!(is_unknown(&store, &id).await);
    let store = factory.reopen_after_crash(store);
    assert!(is_unknown(&store, &id).await);
}

async fn a_session_is_unknown_in_other_repositories<F: Factory>(factory: F) {
    let store = factory.open();
    let id = leave(&store, blob().bytes).await;
    let elsewhere = store.upload(&local("team/other"), &id).await;
    assert!(matches!(elsewhere, Err(UploadError::Unknown)));
    for id in ["", "..", "no-session", "00000000-0000-4000-8000-000000000000"] {
        assert!(is_unknown(&store, id).await, "{id:?}");
    }
    assert!(find(&store, &id).await.is_ok(), "it is free: the other request never held it");
}

async fn an_idle_session_expires_and_a_held_one_does_not<F: Factory>(factory: F) {
    let store = factory.open();
    let id = leave(&store, blob().bytes).await;
    let held = find(&store, &id).await.unwrap();
    assert_eq!(store.expire_uploads(Duration::ZERO).await.unwrap(), 0, "a request holds it");
    drop(held);
    assert_eq!(store.expire_uploads(HOUR).await.unwrap(), 0, "it was written to a moment ago");
    assert!(find(&store, &id).await.is_ok());
    let other = leave(&store, Bytes::new()).await;
    let store = factory.reopen_after_crash(store);
    assert_eq!(store.expire_uploads(Duration::ZERO).await.unwrap(), 2, "also those of an earlier process");
    assert!(is_unknown(&store, &id).await && is_unknown(&store, &other).await);
}

async fn an_upload_may_be_finished_with_another_digest_algorithm<F: Factory>(factory: F) {
    let store = factory.open();
    let bytes = blob().bytes;
    let sha512 = Content { digest: Digest::of(Algorithm::Sha512, &bytes), bytes };
    let id = leave(&store, sha512.bytes.clone()).await;
    find(&store, &id).await.unwrap().finish(&app(), &sha512.digest).await.unwrap();
    assert!(is_stored(&store, &sha512).await && is_member(&store, &app(), &sha512).await);
}

async fn an_empty_blob_can_be_uploaded<F: Factory>(factory: F) {
    let (store, empty) = (factory.open(), Content::of(Bytes::new()));
    let upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    upload.finish(&app(), &empty.digest).await.unwrap();
    assert!(is_stored(&store, &empty).await && is_member(&store, &app(), &empty).await);
}

async fn a_push_without_room_is_refused<F: Factory>(factory: F) {
    let store = factory.open();
    store.require_room_for_push(0).await.unwrap();
    store.require_room_for_push(1).await.unwrap();
    let refused = store.require_room_for_push(u64::MAX / 2).await;
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
}

async fn two_uploads_of_one_digest_both_succeed<F: Factory>(factory: F) {
    let (store, blob) = (factory.open(), blob());
    let ([one, two], library) = (["team/one", "team/two"].map(local), mirrored("library/app"));
    for _ in 0..20 {
        let (_, _, filled) = tokio::join!(
            super::push(&store, &one, &blob),
            super::push(&store, &two, &blob),
            super::fill(&store, &library, &blob)
        );
        filled.unwrap();
        assert!(is_stored(&store, &blob).await);
        assert!(is_member(&store, &one, &blob).await && is_member(&store, &two, &blob).await);
        assert_eq!(store.bytes(roadstead::store::Class::Pushed), blob.length());
        for repo in [&one, &two] {
            assert!(store.unlink_blob(repo, &blob.digest).await.unwrap());
        }
    }
}

async fn a_last_chunk_without_its_end_leaves_nothing<F: Factory>(factory: F) {
    let (store, blob) = (factory.open(), blob());
    for before in [0, 5000] {
        let id = leave(&store, blob.bytes.slice(..before)).await;
        for _ in 0..2 {
            let upload = find(&store, &id).await.unwrap();
            upload.begin_last_chunk().await.unwrap();
            upload.append(vec![blob.bytes.slice(before..9000)]).await.unwrap();
            drop(upload);
            assert_eq!(find(&store, &id).await.unwrap().length(), before as u64);
        }
        let upload = find(&store, &id).await.unwrap();
        upload.begin_last_chunk().await.unwrap();
        upload.append(vec![blob.bytes.slice(before..)]).await.unwrap();
        upload.finish(&app(), &blob.digest).await.unwrap();
        assert!(is_stored(&store, &blob).await && is_unknown(&store, &id).await);
    }
}

async fn sessions_that_are_held_never_give_way<F: Factory>(factory: F) {
    let uploads = UploadBounds { max_bytes: u64::MAX, max_count: 1 };
    let store = factory.open_with(StoreSettings { uploads, ..StoreSettings::default() });
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(store.create_upload(&app(), Algorithm::Sha256).await.unwrap());
    }
    let idle = leave(&store, Bytes::new()).await;
    let next = leave(&store, Bytes::new()).await;
    assert!(is_unknown(&store, &idle).await, "it gives way to the next one");
    assert!(find(&store, &next).await.is_ok());
    for upload in held {
        upload.append(vec![blob().bytes]).await.unwrap();
        upload.finish(&app(), &blob().digest).await.unwrap();
    }
}
