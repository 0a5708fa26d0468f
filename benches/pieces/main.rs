//! Microbenchmarks of the parts of a hit, without sockets: `make pieces`. They show the effect of a change to one
//! part; the figures that count are in docs/benchmarks.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that fails ends the run")]

#[path = "../support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use roadstead::oci::{Algorithm, ByteRange, Digest, Route};
use roadstead::store::READ_BYTES;
use support::hot::{BLOB_BYTES, Hot, mirrored, tag};
use support::tests::{Image, random_bytes};
use tokio::runtime::{Builder, Runtime};

const TAGS: usize = 1000;
const PAGE: usize = 100;

fn route(criterion: &mut Criterion) {
    let paths = [
        ("manifest by tag", "/v2/library/hot/manifests/v1".to_owned()),
        ("blob", format!("/v2/library/hot/blobs/sha256:{}", "0".repeat(64))),
    ];
    for (what, path) in paths {
        criterion.bench_function(&format!("route/{what}"), |bencher| bencher.iter(|| Route::parse(black_box(&path))));
    }
}

fn hits(criterion: &mut Criterion) {
    let runtime = runtime();
    let hot = runtime.block_on(Hot::new());
    let mut group = criterion.benchmark_group("hit");
    for (what, path) in [("manifest by digest", &hot.by_digest), ("manifest by tag", &hot.by_tag)] {
        group.bench_function(what, |bencher| bencher.to_async(&runtime).iter(|| hot.get(path)));
    }
    group.throughput(Throughput::Bytes(BLOB_BYTES as u64));
    group.bench_function("blob of 1 MiB", |bencher| bencher.to_async(&runtime).iter(|| hot.get(&hot.blob)));
}

/// One frame of a file that is still being written, as read by a follower of a fill.
fn follower(criterion: &mut Criterion) {
    let runtime = runtime();
    let hot = runtime.block_on(Hot::new());
    let spool = runtime.block_on(async {
        let spool = hot.store.begin(Algorithm::Sha256, None).await.expect("a spool");
        spool.write_at(0, vec![random_bytes(1, BLOB_BYTES)]).await.expect("the bytes are written");
        spool
    });
    let content = spool.range_to(2 * READ_BYTES as u64);
    let mut group = criterion.benchmark_group("follower");
    let frame = READ_BYTES as u64;
    let second = ByteRange { start: frame, end: 2 * frame };
    group.throughput(Throughput::Bytes(frame));
    group.bench_function("read of a frame", |bencher| {
        bencher
            .to_async(&runtime)
            .iter(async || content.with_range(second).read().await.expect("the frame can be read"));
    });
}

/// A page of a list from the index, and a lookup in the front.
fn look_ups(criterion: &mut Criterion) {
    let runtime = runtime();
    let hot = runtime.block_on(Hot::new());
    let tagged = mirrored("library/tagged");
    let tags: Vec<String> = (0..TAGS).map(|n| format!("t{n:04}")).collect();
    runtime.block_on(tag(&hot.store, &tagged, &Image::new(2, &[]), &tags));
    let blob: Option<Digest> = hot.blob.rsplit('/').next().and_then(|digest| digest.parse().ok());
    let blob = blob.expect("a digest");
    let mut group = criterion.benchmark_group("look-up");
    group.bench_function("page of 100 of 1000 tags, index", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let page = hot.store.tags(&tagged, "t0500", PAGE).await.expect("a page");
            assert_eq!(page.items.len(), PAGE);
        });
    });
    group.bench_function("membership of a blob, from the front", |bencher| {
        bencher.to_async(&runtime).iter(async || hot.store.member(&hot.repository, &blob).await.expect("an answer"));
    });
}

/// One thread, as for a request. Disk access still goes to the blocking pool.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

criterion_group!(pieces, route, hits, follower, look_ups);
criterion_main!(pieces);
