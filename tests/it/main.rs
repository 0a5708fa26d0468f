//! All integration tests in one binary: it links once, and the modules share their support.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod answers;
mod attacks;
mod backup;
mod bad_transfers;
mod breaker;
mod chaining;
mod chaos;
mod cli;
#[path = "../clients/mod.rs"]
mod clients;
mod collector;
mod control;
mod copies;
mod crash;
mod credentials;
mod deadlines;
mod deletes;
mod disk;
mod eviction;
mod fills;
mod followers;
mod freshness;
mod fuzz;
mod gc;
mod input;
mod lists;
mod metrics;
mod mirrored_manifests;
mod mirrored_referrers;
mod model;
mod mounts;
mod operator;
mod outages;
mod power;
mod push;
mod pushed_manifests;
mod ranges;
mod rate_limits;
mod read_only;
mod readers;
mod referrers;
mod refreshing;
mod restart;
mod resumes;
mod retries;
mod rights;
mod routing;
mod scene;
mod scrub;
mod sessions;
mod sha512;
mod slots;
mod support;
mod usage;
