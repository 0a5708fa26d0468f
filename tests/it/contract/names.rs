//! Guarantees of the trait `Names`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use roadstead::oci::{Algorithm, RepoId, RepoName};
use roadstead::store::{CollectRules, Page, Store, TagRecord};

use super::{
    Content, Factory, HOUR, NO_GRACE, collect, contract, fill, has_manifest, is_member, is_stored, local, mirrored,
    push, put, tag, tagged,
};
use crate::support::image::OCI_MANIFEST;

contract!(
    local_changes_survive_a_crash,
    local_deletions_survive_a_crash,
    a_reader_sees_a_tag_before_or_after_a_move,
    no_name_leads_to_something_missing,
    deleted_names_are_gone_for_every_later_call,
    a_read_during_a_deletion_does_not_keep_the_name,
    lookups_start_the_grace_period_anew,
    nothing_is_collected_before_its_grace_has_passed,
    what_a_tag_reaches_is_not_collected,
    names_of_one_repository_mean_nothing_in_another,
    a_repository_exists_once_something_is_stored_in_it,
    a_mirrored_manifest_makes_its_children_readable,
    an_existing_link_keeps_its_size,
    deleting_a_manifest_removes_its_tags_alone,
    deleting_a_tag_keeps_its_manifest,
    tags_come_in_pages_in_ascii_order,
    local_repositories_come_in_pages,
    a_tag_is_set_only_from_the_expected_digest,
    one_of_many_concurrent_tag_changes_wins,
    a_confirmation_is_visible_before_it_is_written,
    referrers_are_sorted_and_go_with_their_manifest,
    a_pushed_blob_is_found_only_where_the_requester_may_read,
    concurrent_puts_and_deletions_of_a_tag_agree_in_the_end,
);

fn app() -> RepoId {
    local("team/app")
}

fn record(manifest: &Content) -> TagRecord {
    let confirmed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    TagRecord { digest: manifest.digest.clone(), media_type: OCI_MANIFEST.into(), confirmed }
}

async fn tag_names(store: &Store, repo: &RepoId) -> Vec<String> {
    store.tags(repo, "", 1000).await.unwrap().items
}

fn page(items: &[&str], more: bool) -> Page {
    Page { items: items.iter().map(|&item| item.to_owned()).collect(), more }
}

// === durability ===

async fn local_changes_survive_a_crash<F: Factory>(factory: F) {
    let (config, layer) = (Content::random(1, 100), Content::random(2, 5000));
    let manifest = Content::manifest("m", &[&config, &layer]);
    let referrer = Content::referrer("r", &manifest.digest);
    let store = factory.open();
    for blob in [&config, &layer] {
        push(&store, &app(), blob).await;
    }
    put(&store, &app(), &manifest, &["v1", "latest"]).await;
    put(&store, &app(), &referrer, &[]).await;
    let store = factory.reopen_after_crash(store);
    assert!(store.is_local(&app().name));
    for blob in [&config, &layer] {
        assert!(is_member(&store, &app(), blob).await && is_stored(&store, blob).await);
    }
    assert!(has_manifest(&store, &app(), &manifest).await);
    assert_eq!(tagged(&store, &app(), "v1").await.as_ref(), Some(&manifest.digest));
    assert_eq!(tag_names(&store, &app()).await, ["latest", "v1"]);
    assert_eq!(store.referrers(&app(), &manifest.digest).await.unwrap(), [referrer.digest]);
}

async fn local_deletions_survive_a_crash<F: Factory>(factory: F) {
    let blob = Content::random(1, 100);
    let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[]));
    let store = factory.open();
    push(&store, &app(), &blob).await;
    put(&store, &app(), &one, &["one", "alias"]).await;
    put(&store, &app(), &two, &["two"]).await;
    assert!(store.delete_tag(&app(), &tag("alias")).await.unwrap());
    assert!(store.delete_manifest(&app(), &two.digest).await.unwrap());
    assert!(store.unlink_blob(&app(), &blob.digest).await.unwrap());
    let store = factory.reopen_after_crash(store);
    assert_eq!(tag_names(&store, &app()).await, ["one"]);
    assert_eq!(tagged(&store, &app(), "alias").await, None);
    assert!(has_manifest(&store, &app(), &one).await && !has_manifest(&store, &app(), &two).await);
    assert!(!is_member(&store, &app(), &blob).await);
}

// === atomicity and order ===

async fn a_reader_sees_a_tag_before_or_after_a_move<F: Factory>(factory: F) {
    let store = factory.open();
    for repo in [app(), mirrored("library/app")] {
        let manifests = ["one", "two"].map(|name| Content::manifest(name, &[]));
        put(&store, &repo, &manifests[0], &["v1"]).await;
        let moves = async {
            for turn in 1..=60 {
                put(&store, &repo, &manifests[turn % 2], &["v1"]).await;
            }
        };
        let stopped = AtomicBool::new(false);
        let reads = async {
            let mut reads = 0;
            while !stopped.load(Ordering::Relaxed) || reads == 0 {
                let found = tagged(&store, &repo, "v1").await.expect("the tag exists at all times");
                assert!(manifests.iter().any(|manifest| manifest.digest == found));
                assert!(store.manifest(&repo, &found).await.unwrap().is_some());
                reads += 1;
                // A read from memory never waits, and the writer runs in the same task.
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(
            async {
                moves.await;
                stopped.store(true, Ordering::Relaxed);
            },
            reads
        );
    }
}

async fn no_name_leads_to_something_missing<F: Factory>(factory: F) {
    let store = factory.open();
    for repo in [app(), mirrored("library/app")] {
        let blob = Content::random(7, 10);
        let images: Vec<(String, Content)> =
            (0..40).map(|n| (format!("v{n}"), Content::manifest(&format!("{n}"), &[&blob]))).collect();
        let changes = async {
            for (name, manifest) in &images {
                put(&store, &repo, manifest, &[name]).await;
            }
            for (_, manifest) in &images {
                assert!(store.delete_manifest(&repo, &manifest.digest).await.unwrap());
            }
        };
        let (stopped, mut followed) = (AtomicBool::new(false), 0);
        let reads = async {
            while !stopped.load(Ordering::Relaxed) {
                for name in tag_names(&store, &repo).await {
                    let Some(digest) = tagged(&store, &repo, &name).await else { continue };
                    match store.manifest(&repo, &digest).await.unwrap() {
                        Some(_) if repo.scope.is_local() => followed += 1,
                        Some(_) => {
                            followed += 1;
                            assert!(is_member(&store, &repo, &blob).await, "children are linked before the manifest");
                        }
                        // No tag comes back here: it must have been removed before its manifest.
                        None => assert_eq!(tagged(&store, &repo, &name).await, None),
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(
            async {
                changes.await;
                stopped.store(true, Ordering::Relaxed);
            },
            reads
        );
        assert!(followed > 0, "some tags were read while they existed");
        assert_eq!(tag_names(&store, &repo).await, [""; 0]);
    }
}

// === visibility ===

async fn deleted_names_are_gone_for_every_later_call<F: Factory>(factory: F) {
    let store = factory.open();
    for repo in [app(), mirrored("library/app")] {
        let blob = Content::random(1, 100);
        let manifest = Content::manifest("m", &[]);
        store.link_blob(&repo, &blob.digest, Some(blob.length())).await.unwrap();
        put(&store, &repo, &manifest, &["v1"]).await;
        // Read, so that every memory cache knows them.
        for _ in 0..2 {
            assert!(is_member(&store, &repo, &blob).await && has_manifest(&store, &repo, &manifest).await);
            assert!(tagged(&store, &repo, "v1").await.is_some());
        }
        assert!(store.cached_tag(&repo, &tag("v1")).is_some());
        assert!(store.unlink_blob(&repo, &blob.digest).await.unwrap());
        assert!(!is_member(&store, &repo, &blob).await);
        assert!(store.delete_manifest(&repo, &manifest.digest).await.unwrap());
        assert_eq!(store.cached_tag(&repo, &tag("v1")), None);
        assert_eq!(tagged(&store, &repo, "v1").await, None);
        assert!(!has_manifest(&store, &repo, &manifest).await);
        assert!(!store.has_manifest(&repo, &manifest.digest).await.unwrap());
        assert!(!store.delete_manifest(&repo, &manifest.digest).await.unwrap(), "only the first one has removed it");
        assert!(!store.unlink_blob(&repo, &blob.digest).await.unwrap());
    }
}

async fn a_read_during_a_deletion_does_not_keep_the_name<F: Factory>(factory: F) {
    let (store, app) = (factory.open(), app());
    let (manifest, blob) = (Content::manifest("m", &[]), Content::random(1, 10));
    for _ in 0..40 {
        put(&store, &app, &manifest, &["v1"]).await;
        store.link_blob(&app, &blob.digest, None).await.unwrap();
        let deletion = async {
            store.unlink_blob(&app, &blob.digest).await.unwrap();
            store.delete_tag(&app, &tag("v1")).await.unwrap();
            store.delete_manifest(&app, &manifest.digest).await.unwrap();
        };
        let reads = async {
            for _ in 0..4 {
                tokio::join!(
                    tagged(&store, &app, "v1"),
                    has_manifest(&store, &app, &manifest),
                    is_member(&store, &app, &blob)
                );
            }
        };
        tokio::join!(reads, deletion);
        assert_eq!(store.cached_tag(&app, &tag("v1")), None);
        assert_eq!(tagged(&store, &app, "v1").await, None);
        assert!(!has_manifest(&store, &app, &manifest).await && !is_member(&store, &app, &blob).await);
    }
}

// === collection ===

async fn lookups_start_the_grace_period_anew<F: Factory>(factory: F) {
    const GRACE: Duration = Duration::from_secs(1);
    let rules =
        CollectRules { grace: GRACE, unreferenced_after: GRACE, untagged_after: Some(Duration::ZERO), remove: true };
    let store = factory.open();
    let [asked, forgotten] = [1, 2].map(|seed| Content::random(seed, 100));
    let [read, checked, left] = ["read", "checked", "left"].map(|name| Content::manifest(name, &[]));
    for blob in [&asked, &forgotten] {
        push(&store, &app(), blob).await;
    }
    for manifest in [&read, &checked, &left] {
        put(&store, &app(), manifest, &[]).await;
    }
    let first = collect(&store, rules).await;
    assert_eq!((first.members, first.manifests, first.waiting), (0, 0, 5), "all are marked");
    // The grace period of the marks passes. It is counted in whole seconds.
    tokio::time::sleep(2 * GRACE).await;
    assert!(is_member(&store, &app(), &asked).await);
    assert!(has_manifest(&store, &app(), &read).await);
    assert!(store.has_manifest(&app(), &checked.digest).await.unwrap());
    let second = collect(&store, rules).await;
    assert_eq!((second.members, second.manifests, second.waiting), (1, 1, 3));
    assert!(is_member(&store, &app(), &asked).await && !is_member(&store, &app(), &forgotten).await);
    assert!(has_manifest(&store, &app(), &read).await && has_manifest(&store, &app(), &checked).await);
    assert!(!has_manifest(&store, &app(), &left).await);
}

async fn nothing_is_collected_before_its_grace_has_passed<F: Factory>(factory: F) {
    let rules =
        CollectRules { grace: HOUR, unreferenced_after: HOUR, untagged_after: Some(Duration::ZERO), remove: true };
    let store = factory.open();
    let (blob, manifest) = (Content::random(1, 100), Content::manifest("m", &[]));
    push(&store, &app(), &blob).await;
    put(&store, &app(), &manifest, &[]).await;
    for _ in 0..3 {
        let collected = collect(&store, rules).await;
        assert_eq!((collected.files, collected.members, collected.manifests, collected.waiting), (0, 0, 0, 2));
    }
    assert!(is_member(&store, &app(), &blob).await && has_manifest(&store, &app(), &manifest).await);
}

async fn what_a_tag_reaches_is_not_collected<F: Factory>(factory: F) {
    let rules = CollectRules { untagged_after: Some(Duration::ZERO), ..NO_GRACE };
    let store = factory.open();
    let (config, layer) = (Content::random(1, 100), Content::random(2, 100));
    let manifest = Content::manifest("m", &[&config, &layer]);
    let (index, signature) = (Content::index(&[&manifest]), Content::referrer("signature", &manifest.digest));
    for blob in [&config, &layer] {
        push(&store, &app(), blob).await;
    }
    for manifest in [&manifest, &signature] {
        put(&store, &app(), manifest, &[]).await;
    }
    put(&store, &app(), &index, &["v1"]).await;
    for _ in 0..2 {
        let collected = collect(&store, rules).await;
        assert_eq!((collected.files, collected.members, collected.manifests, collected.waiting), (0, 0, 0, 0));
    }
    assert!(store.delete_tag(&app(), &tag("v1")).await.unwrap());
    for _ in 0..3 {
        collect(&store, rules).await;
    }
    for content in [&config, &layer, &manifest, &index, &signature] {
        assert!(!is_stored(&store, content).await, "without the tag nothing is reachable");
    }
}

// === isolation ===

async fn names_of_one_repository_mean_nothing_in_another<F: Factory>(factory: F) {
    let store = factory.open();
    let [pushed, cached] = [1, 2].map(|seed| Content::random(seed, 100));
    let manifest = Content::manifest("m", &[]);
    let referrer = Content::referrer("r", &manifest.digest);
    push(&store, &app(), &pushed).await;
    put(&store, &app(), &manifest, &["v1"]).await;
    put(&store, &app(), &referrer, &[]).await;
    fill(&store, &mirrored("library/app"), &cached).await.unwrap();
    // The same name in another scope is another repository.
    for other in [local("team/other"), mirrored("team/app"), mirrored("library/other")] {
        assert!(!is_member(&store, &other, &pushed).await && !is_member(&store, &other, &cached).await);
        assert!(!has_manifest(&store, &other, &manifest).await);
        assert!(!store.has_manifest(&other, &manifest.digest).await.unwrap());
        assert_eq!(tagged(&store, &other, "v1").await, None);
        assert_eq!(store.referrers(&other, &manifest.digest).await.unwrap(), []);
        assert_eq!(tag_names(&store, &other).await, [""; 0]);
    }
    assert!(!is_member(&store, &app(), &cached).await);
    store.link_blob(&local("team/other"), &pushed.digest, None).await.unwrap();
    assert!(is_member(&store, &local("team/other"), &pushed).await, "a link makes it readable");
}

// === repositories, members and manifests ===

async fn a_repository_exists_once_something_is_stored_in_it<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, blob) = (mirrored("library/app"), Content::random(1, 10));
    for repo in [app(), library.clone()] {
        assert!(!store.repository_exists(&repo).await.unwrap());
    }
    assert!(!store.is_local(&app().name));
    let mut upload = store.create_upload(&app(), Algorithm::Sha256).await.unwrap();
    upload.keep();
    drop(upload);
    assert!(!store.is_local(&app().name), "an upload is no content");
    for _ in 0..2 {
        push(&store, &app(), &blob).await;
        assert!(store.is_local(&app().name) && store.repository_exists(&app()).await.unwrap());
    }
    assert!(!store.repository_exists(&mirrored("team/app")).await.unwrap(), "it exists in its scope alone");
    fill(&store, &library, &blob).await.unwrap();
    assert!(store.repository_exists(&library).await.unwrap());
    assert!(!store.is_local(&library.name));
}

async fn a_mirrored_manifest_makes_its_children_readable<F: Factory>(factory: F) {
    let store = factory.open();
    let (config, layer) = (Content::random(1, 10), Content::random(2, 20));
    let manifest = Content::manifest("m", &[&config, &layer]);
    let library = mirrored("library/app");
    put(&store, &library, &manifest, &["v1"]).await;
    for blob in [&config, &layer] {
        let member = store.member(&library, &blob.digest).await.unwrap().unwrap();
        assert_eq!(member.size, Some(blob.length()), "the descriptor tells the size");
        assert!(!is_stored(&store, blob).await, "the content need not be stored");
    }
    put(&store, &app(), &manifest, &["v1"]).await;
    assert!(!is_member(&store, &app(), &config).await, "a pushed manifest links nothing");
}

async fn an_existing_link_keeps_its_size<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, blob) = (mirrored("library/app"), Content::random(1, 10));
    for (size, expected) in [(None, None), (Some(10), Some(10)), (None, Some(10)), (Some(11), Some(10))] {
        store.link_blob(&library, &blob.digest, size).await.unwrap();
        assert_eq!(store.member(&library, &blob.digest).await.unwrap().unwrap().size, expected);
    }
}

async fn deleting_a_manifest_removes_its_tags_alone<F: Factory>(factory: F) {
    let store = factory.open();
    for repo in [app(), mirrored("library/app")] {
        let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[]));
        put(&store, &repo, &one, &["a", "c"]).await;
        put(&store, &repo, &two, &["b"]).await;
        assert!(store.delete_manifest(&repo, &one.digest).await.unwrap());
        assert_eq!(tag_names(&store, &repo).await, ["b"]);
        assert_eq!(tagged(&store, &repo, "b").await.as_ref(), Some(&two.digest));
    }
}

async fn deleting_a_tag_keeps_its_manifest<F: Factory>(factory: F) {
    let store = factory.open();
    let manifest = Content::manifest("m", &[]);
    put(&store, &app(), &manifest, &["v1", "v2"]).await;
    assert!(store.delete_tag(&app(), &tag("v1")).await.unwrap());
    assert!(!store.delete_tag(&app(), &tag("v1")).await.unwrap());
    assert!(has_manifest(&store, &app(), &manifest).await);
    assert_eq!(tag_names(&store, &app()).await, ["v2"]);
}

// === lists ===

async fn tags_come_in_pages_in_ascii_order<F: Factory>(factory: F) {
    let store = factory.open();
    let manifest = Content::manifest("m", &[]);
    put(&store, &app(), &manifest, &["b", "_a", "B", "10", "9", "a-1", "a"]).await;
    put(&store, &local("team/app2"), &manifest, &["other"]).await;
    let tags = async |after: &str, limit| store.tags(&app(), after, limit).await.unwrap();
    assert_eq!(tags("", 3).await, page(&["10", "9", "B"], true));
    assert_eq!(tags("B", 3).await, page(&["_a", "a", "a-1"], true));
    assert_eq!(tags("a-1", 3).await, page(&["b"], false));
    assert!(!tags("", 7).await.more, "an exactly full page is the last one");
    assert_eq!(tags("Z", 1).await, page(&["_a"], true), "`after` need not exist");
    assert_eq!(tags("b", 3).await, page(&[], false));
    assert_eq!(store.tags(&local("team/none"), "", 3).await.unwrap(), page(&[], false));
}

async fn local_repositories_come_in_pages<F: Factory>(factory: F) {
    let store = factory.open();
    for name in ["team/b", "a", "team", "team/a/x"] {
        push(&store, &local(name), &Content::random(2, 10)).await;
    }
    fill(&store, &mirrored("library/app"), &Content::random(1, 10)).await.unwrap();
    let repositories = async |after: &str, limit| store.local_repositories(after, limit).await.unwrap();
    assert_eq!(repositories("", 3).await, page(&["a", "team", "team/a/x"], true));
    assert_eq!(repositories("team/a/x", 3).await, page(&["team/b"], false));
    assert!(!repositories("", 4).await.more);
    let store = factory.reopen_after_crash(store);
    assert_eq!(store.local_repositories("", 10).await.unwrap().items, ["a", "team", "team/a/x", "team/b"]);
}

// === compare and set ===

async fn a_tag_is_set_only_from_the_expected_digest<F: Factory>(factory: F) {
    let store = factory.open();
    let library = mirrored("library/app");
    let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[]));
    for manifest in [&one, &two] {
        put(&store, &library, manifest, &[]).await;
    }
    let set = async |old: Option<&Content>, new: &Content| {
        let old = old.map(|manifest| manifest.digest.clone());
        store.compare_and_set_tag(&library, &tag("v1"), old, record(new), Duration::ZERO).await.unwrap()
    };
    assert!(set(None, &one).await, "a tag that does not exist is created");
    assert!(!set(None, &two).await, "it exists by now");
    assert!(!set(Some(&two), &two).await, "it points to something else");
    assert_eq!(tagged(&store, &library, "v1").await.as_ref(), Some(&one.digest), "without effect");
    assert!(set(Some(&one), &one).await, "a confirmation");
    assert!(set(Some(&one), &two).await);
    assert_eq!(tagged(&store, &library, "v1").await.as_ref(), Some(&two.digest));
    assert!(store.delete_tag(&library, &tag("v1")).await.unwrap());
    assert!(set(Some(&two), &one).await, "a tag that has vanished has not moved");
    assert_eq!(tag_names(&store, &library).await, ["v1"]);
}

async fn one_of_many_concurrent_tag_changes_wins<F: Factory>(factory: F) {
    let store = factory.open();
    let library = mirrored("library/app");
    let first = Content::manifest("first", &[]);
    put(&store, &library, &first, &["v1"]).await;
    let rivals: Vec<Content> = (0..8).map(|n| Content::manifest(&n.to_string(), &[])).collect();
    for rival in &rivals {
        put(&store, &library, rival, &[]).await;
    }
    let changes = rivals.iter().map(|rival| {
        let (store, library, old, new) = (store.clone(), library.clone(), first.digest.clone(), record(rival));
        tokio::spawn(async move {
            store.compare_and_set_tag(&library, &tag("v1"), Some(old), new, Duration::ZERO).await.unwrap()
        })
    });
    let mut winners = Vec::new();
    for (change, rival) in changes.collect::<Vec<_>>().into_iter().zip(&rivals) {
        if change.await.unwrap() {
            winners.push(rival.digest.clone());
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(tagged(&store, &library, "v1").await, winners.pop());
}

async fn a_confirmation_is_visible_before_it_is_written<F: Factory>(factory: F) {
    let store = factory.open();
    let (library, manifest) = (mirrored("library/app"), Content::manifest("m", &[]));
    put(&store, &library, &manifest, &[]).await;
    let confirmed_after = |seconds| {
        let record = record(&manifest);
        TagRecord { confirmed: record.confirmed + Duration::from_secs(seconds), ..record }
    };
    let old = || Some(manifest.digest.clone());
    for seconds in [0, 10, 60] {
        let (minute, new) = (Duration::from_secs(60), confirmed_after(seconds));
        assert!(store.compare_and_set_tag(&library, &tag("v1"), old(), new.clone(), minute).await.unwrap());
        assert_eq!(store.tag(&library, &tag("v1")).await.unwrap(), Some(new), "visible at once");
    }
    let store = factory.reopen_after_close(store).await;
    let found = store.tag(&library, &tag("v1")).await.unwrap();
    assert_eq!(found, Some(confirmed_after(60)), "an old one is written");
}

// === referrers and pushed blobs ===

async fn referrers_are_sorted_and_go_with_their_manifest<F: Factory>(factory: F) {
    let store = factory.open();
    // The subject need not exist.
    let subject = Content::manifest("subject", &[]);
    let mut referrers: Vec<Content> = (0..5).map(|n| Content::referrer(&n.to_string(), &subject.digest)).collect();
    for referrer in &referrers {
        put(&store, &app(), referrer, &[]).await;
        put(&store, &app(), referrer, &[]).await;
    }
    put(&store, &app(), &Content::referrer("other", &referrers[0].digest), &[]).await;
    let digests = |referrers: &[Content]| {
        let mut digests: Vec<_> = referrers.iter().map(|referrer| referrer.digest.clone()).collect();
        digests.sort_unstable();
        digests
    };
    assert_eq!(store.referrers(&app(), &subject.digest).await.unwrap(), digests(&referrers));
    let removed = referrers.pop().unwrap();
    assert!(store.delete_manifest(&app(), &removed.digest).await.unwrap());
    assert_eq!(store.referrers(&app(), &subject.digest).await.unwrap(), digests(&referrers));
}

async fn a_pushed_blob_is_found_only_where_the_requester_may_read<F: Factory>(factory: F) {
    let store = factory.open();
    let [pushed, cached] = [1, 2].map(|seed| Content::random(seed, 100));
    for repo in ["team/a", "team/b"] {
        push(&store, &local(repo), &pushed).await;
    }
    fill(&store, &mirrored("library/app"), &cached).await.unwrap();
    let find = async |blob: &Content, readable: &'static [&'static str]| {
        let may_read = Box::new(move |name: &RepoName| readable.contains(&name.as_str()));
        store.find_pushed(&blob.digest, may_read).await.unwrap()
    };
    assert_eq!(find(&pushed, &["team/b", "library/app"]).await, Some(local("team/b")));
    assert_eq!(find(&pushed, &["team/a"]).await, Some(local("team/a")));
    assert_eq!(find(&pushed, &["team/c"]).await, None);
    assert_eq!(find(&cached, &["library/app"]).await, None, "cached content is not pushed");
    store.unlink_blob(&local("team/b"), &pushed.digest).await.unwrap();
    assert_eq!(find(&pushed, &["team/b"]).await, None);
}

// === concurrency ===

async fn concurrent_puts_and_deletions_of_a_tag_agree_in_the_end<F: Factory>(factory: F) {
    let (store, app, v1) = (factory.open(), app(), tag("v1"));
    let [one, two] = ["one", "two"].map(|name| Content::manifest(name, &[]));
    for round in 0..25 {
        let (_, _, tag_deletion, manifest_deletion) = tokio::join!(
            put(&store, &app, &one, &["v1"]),
            put(&store, &app, &two, &["v1"]),
            store.delete_tag(&app, &v1),
            store.delete_manifest(&app, &one.digest)
        );
        tag_deletion.unwrap();
        manifest_deletion.unwrap();
        let (found, listed) = (tagged(&store, &app, "v1").await, tag_names(&store, &app).await);
        assert_eq!(listed.len(), usize::from(found.is_some()), "round {round}: the list agrees with the tag");
        if let Some(digest) = found {
            assert!(store.manifest(&app, &digest).await.unwrap().is_some(), "round {round}: the manifest exists");
            assert!(digest == one.digest || digest == two.digest);
        }
    }
    let before = tagged(&store, &app, "v1").await;
    let store = factory.reopen_after_crash(store);
    assert_eq!(tagged(&store, &app, "v1").await, before);
}
