//! Disks without inodes, disks that cannot be written, and an index that fails on them.

use super::*;
use crate::store::{DiskState, Lack, Obstacle};

/// Bytes are never short here.
const PLENTY: Bounds = Bounds { max_size: 1 << 40, min_free: 0 };
/// Inodes of the disk in addition to those of an empty store.
const INODES: u64 = 250;
/// A tenth of all inodes stays free.
const KEPT_FREE_DIVISOR: u64 = 10;

/// Files and folders below a folder.
fn inodes_below(folder: &Path) -> u64 {
    let count = |path: PathBuf| 1 + if path.is_dir() { inodes_below(&path) } else { 0 };
    // An entry may be removed meanwhile.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| count(entry.path())).sum()
}

/// A store on a disk that has few inodes.
fn with_few_inodes() -> Scene {
    let scene = Scene::with_bounds(PLENTY);
    let root = scene.folder.path().to_owned();
    let inodes = inodes_below(&root) + INODES;
    scene.plan.set_disk(move |disk| DiskState {
        inodes,
        free_inodes: inodes.saturating_sub(inodes_below(&root)),
        ..disk
    });
    scene
}

fn free_inodes(scene: &Scene) -> (u64, u64) {
    let disk = scene.store().disk().unwrap();
    (disk.free_inodes, disk.inodes / KEPT_FREE_DIVISOR)
}

#[test]
fn cached_content_makes_way_when_inodes_run_out() {
    let mut scene = with_few_inodes();
    for number in 0..60 {
        fill_one(&scene, number).unwrap();
        let (free, _) = free_inodes(&scene);
        assert!(free > 0, "{number}");
    }
    assert!(scene.evicted.load(Ordering::Relaxed) > 20);
    scene.check();
    for number in 1000..1004 {
        push(&mut scene, &local(&format!("team/app{number}")), &Image::new(number), &tag("v1")).unwrap();
    }
    // On this thread, for which the plan replaces the state of the disk.
    let store = scene.store();
    store.local().cache().evict_in_background(&**store.local(), &AtomicBool::new(false)).unwrap();
    drop(store);
    let (free, kept) = free_inodes(&scene);
    assert!(free >= kept, "{free} of {kept}");
    scene.reopen(true);
    scene.check();
}

#[test]
fn shielded_content_makes_way_when_inodes_run_out() {
    let scene = with_few_inodes();
    for number in 0..40 {
        let (store, image, repo) = (scene.store(), Image::new(number), mirrored(&format!("library/app{number}")));
        let served = scene.run(store.put_manifest(&repo, image.new_manifest(), vec![tag("v1")])).unwrap();
        store.local().cache().note_manifest(&served);
        scene.run(fill(&store, &repo, &image)).unwrap();
    }
    assert!(scene.evicted.load(Ordering::Relaxed) > 0, "the shields hold less than half of the bytes");
    scene.check();
}

#[test]
fn a_push_without_inodes_is_refused_and_says_so() {
    let mut scene = with_few_inodes();
    let failed = (0..200).find_map(|number| {
        push(&mut scene, &local(&format!("team/app{number}")), &Image::new(number), &tag("v1")).err()
    });
    let error = failed.expect("inodes run out");
    assert!(matches!(error, StoreError::NoRoom { lack: Lack::Inodes, .. }), "{error}");
    assert_eq!(error.obstacle(), Some(Obstacle::Inodes));
    let (free, kept) = free_inodes(&scene);
    assert!(free > kept / 2, "names of pushed content may use those that stay free, but new content may not: {free}");
    scene.check();
}

#[test]
fn a_start_without_inodes_makes_room_for_the_index() {
    let mut scene = with_few_inodes();
    for number in 0..20 {
        fill_one(&scene, number).unwrap();
    }
    scene.run(async { scene.store().close().await });
    scene.store = None;
    std::fs::remove_dir_all(scene.folder.path().join("index")).unwrap();
    let stored = inodes_below(&scene.folder.path().join("blobs"));
    let root = scene.folder.path().to_owned();
    scene.plan.set_disk(move |disk| {
        let freed = stored.saturating_sub(inodes_below(&root.join("blobs")));
        DiskState { inodes: 1000, free_inodes: freed, ..disk }
    });
    scene.open();
    assert!(!scene.store().lacks_index());
    assert!(inodes_below(&scene.folder.path().join("blobs")) < stored, "cached content made way");
}

#[test]
fn an_unwritable_disk_names_its_obstacle_and_serves_stored_content() {
    let mut scene = with_an_image();
    fill_one(&scene, 1).unwrap();
    let kept = digest_of(&Image::new(1).blob);
    for (errno, obstacle) in [
        (Errno::ROFS, Obstacle::ReadOnlyDisk),
        (Errno::IO, Obstacle::Failed),
        (Errno::DQUOT, Obstacle::Quota),
        (Errno::NOSPC, Obstacle::DiskFull),
        (Errno::FBIG, Obstacle::FileTooLarge),
        (Errno::ACCESS, Obstacle::NotPermitted),
    ] {
        scene.plan.refuse_changes(Some(errno));
        let (store, image, repo) = (scene.store(), Image::new(50), mirrored("library/other"));
        let digest = digest_of(&image.blob);
        let refused = [
            scene.run(store.put_manifest(&repo, image.new_manifest(), Vec::new())).map(drop).unwrap_err(),
            scene.run(fill(&store, &repo, &image)).unwrap_err(),
            scene.run(store.link_blob(&repo, &digest, None)).unwrap_err(),
            scene.run(upload(&store, &local("team/new"), &image)).unwrap_err(),
            scene.run(store.check_writable()).unwrap_err(),
            store.write_failure().expect("the check is remembered"),
        ];
        for error in refused {
            assert_eq!(error.obstacle(), Some(obstacle), "{error}");
        }
        assert_eq!(scene.run(store.blob(&kept)).unwrap().unwrap().len(), BLOB as u64);
        scene.plan.refuse_changes(None);
        std::thread::sleep(Duration::from_millis(1100));
        scene.run(store.recheck_writable()).unwrap();
        assert!(store.write_failure().is_none(), "it takes writes again");
    }
    fill_one(&scene, 2).unwrap();
    scene.check();
    scene.reopen(true);
    scene.check();
}

#[test]
fn writing_is_tried_once_a_second_and_at_once_after_a_failed_write() {
    let scene = Scene::new();
    let store = scene.store();
    let tries = |expected: bool| {
        scene.plan.set(None);
        let writable = scene.run(store.check_writable()).is_ok();
        assert_eq!(writable, expected);
        scene.plan.calls() > 0
    };
    assert!(tries(true), "nothing is known yet");
    let started = std::time::Instant::now();
    let tried = (0..100).filter(|_| tries(true)).count() as u64;
    assert!(tried <= 1 + started.elapsed().as_secs(), "the last result is used: {tried}");
    scene.plan.refuse_changes(Some(Errno::ROFS));
    assert!(scene.run(store.begin(Algorithm::Sha256, Some(1))).is_err());
    // Refused operations are not counted, so only the result shows that it was tried.
    tries(false);
}

#[test]
fn a_failed_index_is_opened_again_and_reconciled() {
    let mut scene = with_a_full_cache();
    let fresh = |scene: &Scene| scene.run(scene.store().tags(&local("team/app"), "", 10)).unwrap().items;
    for number in 2000..2003 {
        let store = scene.store();
        store.local().index().fail();
        assert!(store.needs_reconcile() && !store.can_evict());
        // Changes without the index.
        let image = Image::new(number);
        push(&mut scene, &local("team/app"), &image, &tag(&format!("t{number}"))).unwrap();
        assert!(fresh(&scene).contains(&format!("t{number}")), "lists come from the files");
        store.reconcile(&AtomicBool::new(false));
        store.restore_recency();
        assert!(store.can_evict());
        assert!(fresh(&scene).contains(&format!("t{number}")));
        scene.check();
        let evicted = scene.evicted.load(Ordering::Relaxed);
        for more in 0..30 {
            fill_one(&scene, number * 100 + more).unwrap();
        }
        assert!(scene.evicted.load(Ordering::Relaxed) > evicted, "eviction works again");
        scene.check();
    }
    scene.reopen(true);
    scene.check();
}
