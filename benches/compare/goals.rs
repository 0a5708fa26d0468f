//! The goals: ratios within a round, and bounds of memory.

use super::pulls::{COLD_ONE, MEMORY, SEGMENTS, SLOW_MANY, SLOW_ONE, SMALL, UNPACED};
use super::pushes::PUSH_OF_A_GIB;
use super::reads::{APART, HTTPS_BLOB, HTTPS_MANIFEST, RANGES};
use super::sample::{Sample, Samples, Spread, short};
use super::subject::Subject::{
    self, Mirrored, MirroredTls, Nginx, NginxCache, NginxTls, Proxy, Pushed, Registry, Segmented, Upstream,
};

enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

pub struct Figure {
    what: String,
    goal: Goal,
    unit: &'static str,
    rounds: Spread,
}

impl Figure {
    pub fn is_reached(&self) -> bool {
        match self.goal {
            Goal::AtLeast(goal) => self.rounds.median >= goal,
            Goal::AtMost(goal) => self.rounds.median <= goal,
        }
    }

    /// A table row: figure, goal, result, and whether the goal is reached.
    pub fn row(&self) -> String {
        let goal = match self.goal {
            Goal::AtLeast(goal) => format!("≥ {goal}"),
            Goal::AtMost(goal) => format!("≤ {goal}"),
        };
        let reached = if self.is_reached() { "yes" } else { "**no**" };
        let Self { what, unit, rounds: Spread { median, least, most }, .. } = self;
        let spread = format!("{}–{}", short(*least), short(*most));
        format!("| {what} | {goal}{unit} | {}{unit} ({spread}) | {reached} |", short(*median))
    }
}

/// The figures that have samples.
pub fn figures(samples: &Samples) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |what: String, goal, unit, rounds: Spread| {
        if rounds.is_known() {
            figures.push(Figure { what, goal, unit, rounds });
        }
    };
    let rate = |sample: &Sample| sample.rate;
    let cpu = |sample: &Sample| sample.cpu;
    let times = " ×";
    let mut faster = |case: &str, subjects: &[Subject], other: Subject, goal: f64| {
        for &subject in subjects {
            let what = format!("{case}: {} over {}", subject.name(), other.name());
            add(what, Goal::AtLeast(goal), times, samples.ratios((case, subject), (case, other), rate));
        }
    };
    faster("manifest by tag, 32 connections", &[Pushed, Mirrored], Nginx, 1.1);
    faster("manifest by digest, 32 connections", &[Pushed, Mirrored], Nginx, 1.1);
    faster("HEAD of a manifest, 32 connections", &[Pushed, Mirrored], Nginx, 1.0);
    faster("304 of a manifest, 32 connections", &[Pushed, Mirrored], Nginx, 1.0);
    faster(HTTPS_MANIFEST, &[MirroredTls], NginxTls, 1.0);
    faster(HTTPS_BLOB, &[MirroredTls], NginxTls, 1.0);
    faster(UNPACED, &[Mirrored], NginxCache, 2.0);
    faster(SMALL, &[Mirrored], Proxy, 1.0);
    faster("blob of 1 MiB, 16 connections", &[Pushed, Mirrored], Nginx, 1.0);
    faster("blob of 100 MiB, 4 connections", &[Pushed], Registry, 1.0);
    faster(RANGES, &[Pushed], Nginx, 0.8);
    for case in [
        "push of 1 MiB, 10 at a time",
        "push of 1 MiB in one PUT, 10 at a time",
        "push of 100 MiB, 4 at a time",
        "push of 100 MiB in one PUT, 4 at a time",
    ] {
        faster(case, &[Pushed], Registry, 1.0);
    }
    faster("catalog page of 100", &[Pushed], Registry, 10.0);
    faster("tags page of 100", &[Pushed], Registry, 10.0);

    for (other, goal) in [(Registry, 1.0), (Nginx, 1.2)] {
        let what = format!("{APART}: CPU per byte, Roadstead over {}", other.name());
        add(what, Goal::AtMost(goal), times, samples.ratios((APART, Pushed), (APART, other), cpu));
    }
    let cost = |case, subject, what: &str, goal| {
        let rounds = samples.of(case, subject).iter().map(|sample| sample.cpu * (1 << 30) as f64);
        (format!("{case}: CPU of {what}, per GiB"), Goal::AtMost(goal), " s", Spread::of(rounds))
    };
    for (what, goal, unit, rounds) in
        [cost(UNPACED, Mirrored, "Roadstead", 2.4), cost(PUSH_OF_A_GIB, Pushed, "Roadstead", 2.5)]
    {
        add(what, goal, unit, rounds);
    }
    let last_byte = |sample: &Sample| 1.0 / sample.rate;
    let pushed = samples.ratios((PUSH_OF_A_GIB, Pushed), (PUSH_OF_A_GIB, Registry), last_byte);
    add(format!("{PUSH_OF_A_GIB}: time, over docker-registry"), Goal::AtMost(0.6), times, pushed);
    let through = samples.ratios((COLD_ONE, Mirrored), (COLD_ONE, Upstream), last_byte);
    add(format!("{COLD_ONE}: last byte, over the upstream alone"), Goal::AtMost(1.05), times, through);
    let first_bytes = samples.of(COLD_ONE, Mirrored).iter().zip(samples.of(COLD_ONE, Upstream));
    let later = first_bytes.filter_map(|(through, alone)| Some(through.first_byte? - alone.first_byte?));
    add(format!("{COLD_ONE}: first byte, later than the upstream's"), Goal::AtMost(1.0), " ms", Spread::of(later));
    let segmented = samples.ratios((SEGMENTS, Segmented), (SEGMENTS, Upstream), last_byte);
    add(format!("{SEGMENTS}: time with 4 connections, over the upstream alone"), Goal::AtMost(0.28), times, segmented);
    // Of 64 clients together, the last one to finish counts.
    let seconds = |sample: &Sample, clients: f64| clients / sample.rate;
    let rounds = samples.of(SLOW_MANY, Mirrored).iter().zip(samples.of(SLOW_ONE, Mirrored));
    let ratio = Spread::of(rounds.map(|(many, one)| seconds(many, 64.0) / seconds(one, 1.0)));
    add(format!("{SLOW_MANY}: last byte, over one client"), Goal::AtMost(1.1), times, ratio);

    let streams = || samples.of(MEMORY, Pushed).iter();
    let peak = Spread::of(streams().map(|sample| sample.peak));
    add(format!("{MEMORY}, 10,000 blobs in store: peak RssAnon"), Goal::AtMost(20.0), " MiB", peak);
    let idle = Spread::of(streams().filter_map(|sample| sample.idle));
    add("the same before them: RssAnon".to_owned(), Goal::AtMost(40.0), " MiB", idle);
    figures
}
