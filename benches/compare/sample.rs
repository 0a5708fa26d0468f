//! Samples, and the figures computed from them.

use super::load::Load;
use super::subject::Subject;
use super::support::process::{cpu, peak_memory};

/// The unit of cost: per request or per byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Requests,
    Bytes,
}

/// One case on one server in one round.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests or bytes per second.
    pub rate: f64,
    /// Milliseconds.
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    /// Milliseconds to the first byte of the body, if measured.
    pub first_byte: Option<f64>,
    /// CPU seconds of the server per request or byte.
    pub cpu: f64,
    /// MiB of RssAnon: the peak, and the value before the load, if measured.
    pub peak: f64,
    pub idle: Option<f64>,
}

impl Sample {
    /// The load that `work` returns, with its cost in these processes.
    pub fn take(pids: &[u32], unit: Unit, work: impl FnOnce() -> Load) -> Self {
        let before = cpu(pids);
        let (load, peak) = peak_memory(pids, work);
        let done = match unit {
            Unit::Requests => load.requests,
            Unit::Bytes => load.bytes,
        };
        Self {
            rate: done / load.seconds,
            p50: load.p50,
            p99: load.p99,
            first_byte: None,
            cpu: (cpu(pids) - before) / done,
            peak,
            idle: None,
        }
    }
}

/// Every sample, by case and subject, in the order of the rounds.
#[derive(Default)]
pub struct Samples(Vec<(String, Subject, Vec<Sample>)>);

impl Samples {
    pub fn add(&mut self, case: &str, subject: Subject, sample: Sample) {
        match self.0.iter_mut().find(|(name, other, _)| name == case && *other == subject) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.0.push((case.to_owned(), subject, vec![sample])),
        }
    }

    pub fn of(&self, case: &str, subject: Subject) -> &[Sample] {
        let found = self.0.iter().find(|(name, other, _)| name == case && *other == subject);
        found.map_or(&[], |(_, _, samples)| samples)
    }

    /// The figure of one server divided by that of another, for each round.
    pub fn ratios(
        &self,
        (case, subject): (&str, Subject),
        (other_case, other): (&str, Subject),
        figure: impl Fn(&Sample) -> f64,
    ) -> Spread {
        let rounds = self.of(case, subject).iter().zip(self.of(other_case, other));
        Spread::of(rounds.map(|(one, other)| figure(one) / figure(other)))
    }
}

/// Median, minimum and maximum of the rounds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// NaN if there are no rounds.
    pub fn of(rounds: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = rounds.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        // For an even number, the mean of the middle two.
        let median = f64::midpoint(at(last / 2), at(sorted.len() / 2));
        Self { median, least: at(0), most: at(last) }
    }

    pub fn is_known(&self) -> bool {
        !self.median.is_nan()
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}–{})", short(self.median), short(self.least), short(self.most))
    }
}

/// At most three significant digits.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        at_least if at_least >= 99.95 => 0,
        at_least if at_least >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}
