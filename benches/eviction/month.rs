//! A month of a cluster: services that are deployed repeatedly, and a nightly build whose images are used only once.

use std::collections::HashSet;

/// One layer requested by one node.
#[derive(Clone, Copy)]
pub struct Request {
    /// Seconds since one day before the start of the month.
    pub at: u32,
    pub object: u32,
}

pub struct Month {
    pub requests: Vec<Request>,
    /// Bytes of each object.
    pub sizes: Vec<u64>,
}

const DAYS: u32 = 30;
const HOUR: u32 = 3600;
const DAY: u32 = 24 * HOUR;
const SERVICES: usize = 2000;
const BASES: usize = 60;
/// Deployments per hour, of services drawn from a Zipf distribution.
const DEPLOYMENTS: u32 = 200;
const NODES: u32 = 10;
/// Images of a nightly build, each pulled by three nodes and never again.
const NIGHTLY: u32 = 400;
const EXPONENT: f64 = 0.9;

struct Service {
    bases: [u32; 2],
    layer: u32,
}

impl Month {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut month = Self { requests: Vec::new(), sizes: Vec::new() };
        let base_ranks = Zipf::new(BASES);
        for _ in 0..BASES {
            month.object(&mut rng, 60.0);
        }
        let mut services: Vec<Service> = (0..SERVICES)
            .map(|_| Service {
                bases: [base_ranks.draw(&mut rng) as u32, base_ranks.draw(&mut rng) as u32],
                layer: month.object(&mut rng, 20.0),
            })
            .collect();
        let ranks = Zipf::new(SERVICES);
        for hour in 0..DAYS * 24 {
            let begins = DAY + hour * HOUR;
            for _ in 0..DEPLOYMENTS {
                let service = &services[ranks.draw(&mut rng)];
                month.pull(&mut rng, begins, NODES, &[service.bases[0], service.bases[1], service.layer]);
            }
            if hour % 24 == 2 {
                for _ in 0..NIGHTLY {
                    let base = base_ranks.draw(&mut rng) as u32;
                    let layers = [base, month.object(&mut rng, 60.0), month.object(&mut rng, 20.0)];
                    month.pull(&mut rng, begins, 3, &layers);
                }
            }
            if hour % (7 * 24) == 9 {
                // A release: a tenth of the services get a new layer, and their old one is not requested again.
                for _ in 0..SERVICES / 10 {
                    let service = rng.usize(..SERVICES);
                    services[service].layer = month.object(&mut rng, 20.0);
                }
            }
        }
        month.requests.sort_by_key(|request| request.at);
        month
    }

    /// Total bytes of all requested objects.
    pub fn footprint(&self) -> u64 {
        let asked_for: HashSet<u32> = self.requests.iter().map(|request| request.object).collect();
        asked_for.into_iter().map(|object| self.sizes[object as usize]).sum()
    }

    /// Nodes pull the same image within two minutes.
    fn pull(&mut self, rng: &mut fastrand::Rng, begins: u32, nodes: u32, layers: &[u32]) {
        let start = begins + rng.u32(..HOUR);
        for _ in 0..nodes {
            let at = start + rng.u32(..120);
            self.requests.extend(layers.iter().map(|&object| Request { at, object }));
        }
    }

    /// A layer of about `median` MiB: log-normal, from 1 KiB to 4 GiB.
    fn object(&mut self, rng: &mut fastrand::Rng, median: f64) -> u32 {
        let normal: f64 = (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0;
        let bytes = median * f64::from(1 << 20) * (1.2 * normal).exp();
        self.sizes.push((bytes as u64).clamp(1 << 10, 4 << 30));
        (self.sizes.len() - 1) as u32
    }
}

/// Ranks, drawn with a probability that falls with their power of `EXPONENT`.
struct Zipf {
    below: Vec<f64>,
}

impl Zipf {
    fn new(ranks: usize) -> Self {
        let mut sum = 0.0;
        let below = (1..=ranks).map(|rank| {
            sum += (rank as f64).powf(-EXPONENT);
            sum
        });
        Self { below: below.collect() }
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        let total = self.below.last().copied().unwrap_or_default();
        let point = rng.f64() * total;
        self.below.partition_point(|&below| below < point).min(self.below.len() - 1)
    }
}
