//! The figures of docs/eviction.md: a simulated month of a cluster with plain LRU, with our policy, and with knowledge of
//! the future. The simulation is seeded, so every run gives the same figures.

mod month;
mod policies;

use month::{Month, Request};
use policies::{Foresight, Lru, Ours, Policy};

/// Capacities of the cache, in thousandths of all bytes that are ever requested.
const CAPACITIES_PER_MILLE: [u64; 4] = [5, 10, 20, 50];

#[derive(Default)]
struct Score {
    requests: u64,
    hits: u64,
    bytes: u64,
    hit_bytes: u64,
}

fn main() {
    let month = Month::new(20_261_120);
    let gib = month.footprint() >> 30;
    println!("{} requests for {} objects, {gib} GiB in all\n", month.requests.len(), month.sizes.len());
    println!("| capacity | policy | hits by request | hits by byte | fetched again |");
    println!("|---|---|---|---|---|");
    for part in CAPACITIES_PER_MILLE {
        let capacity = month.footprint() / 1000 * part;
        let policies: [(&str, Box<dyn Policy>); 3] = [
            ("LRU", Box::new(Lru::new(capacity))),
            ("ours", Box::new(Ours::new(capacity))),
            ("knowing the future", Box::new(Foresight::new(capacity, &month))),
        ];
        for (name, policy) in policies {
            let score = replay(&month, policy);
            let by_request = 100.0 * score.hits as f64 / score.requests as f64;
            let by_byte = 100.0 * score.hit_bytes as f64 / score.bytes as f64;
            // First requests are misses with any policy; repeated fetches depend on it.
            let again = (score.bytes - score.hit_bytes - month.footprint()) >> 30;
            let percent = part as f64 / 10.0;
            let size = capacity >> 30;
            println!("| {percent} % ({size} GiB) | {name} | {by_request:.1} % | {by_byte:.1} % | {again} GiB |");
        }
    }
}

fn replay(month: &Month, mut policy: Box<dyn Policy>) -> Score {
    let mut score = Score::default();
    for (position, &Request { at, object }) in month.requests.iter().enumerate() {
        let size = month.sizes[object as usize];
        let hit = policy.request(position, object, size, at);
        score.requests += 1;
        score.bytes += size;
        score.hits += u64::from(hit);
        score.hit_bytes += if hit { size } else { 0 };
    }
    score
}
