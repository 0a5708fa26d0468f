//! The tables in Markdown.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::case::Case;
use super::goals::Figure;
use super::programs;
use super::sample::{Sample, Samples, Spread, Unit, short};
use super::subject::Subject::{self, Nginx, NginxCache, NginxTls, Proxy, Registry, Upstream};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// One paragraph about the machine, the programs and the date.
pub fn machine(rounds: usize) -> String {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let value = |file: &str, key: &str, separator: char| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(separator));
        line.map_or("unknown".to_owned(), |value| value.trim().trim_matches('"').to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = value("/proc/meminfo", "MemTotal", ':');
    let memory = memory.trim_end_matches(" kB").parse::<f64>().map_or(memory.clone(), |kib| short(kib / 1048576.0));
    let rounds = if rounds == 1 { "one round".to_owned() } else { format!("{rounds} rounds") };
    let date = Command::new("date").arg("+%Y-%m-%d").output().expect("coreutils");
    format!(
        "Measured on {}, {rounds}: {cores} cores ({}), {memory} GiB of memory, {}, Linux {}; {}, Roadstead {}.",
        String::from_utf8_lossy(&date.stdout).trim(),
        value("/proc/cpuinfo", "model name", ':'),
        value("/etc/os-release", "PRETTY_NAME", '='),
        read("/proc/sys/kernel/osrelease").trim(),
        programs::versions(),
        env!("CARGO_PKG_VERSION"),
    )
}

pub fn cases(cases: &[Case], samples: &Samples) -> String {
    let mut table = "| case | server | throughput | p50 | p99 | CPU | peak RssAnon | × nginx | × docker-registry |\n\
                     |---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for case in cases {
        let mut name = case.name.as_str();
        for &subject in &case.subjects {
            let taken = samples.of(&case.name, subject);
            if !taken.is_empty() {
                table += &row(name, case, subject, samples);
                name = "";
            }
        }
    }
    table
}

fn row(name: &str, case: &Case, subject: Subject, samples: &Samples) -> String {
    let taken = samples.of(&case.name, subject);
    let median = |figure: &dyn Fn(&Sample) -> Option<f64>| Spread::of(taken.iter().filter_map(figure));
    let shown = |spread: Spread, unit: &str| match spread.is_known() {
        true => format!("{}{unit}", short(spread.median)),
        false => String::new(),
    };
    let (rate, cpu) = (median(&|sample| Some(sample.rate)).median, median(&|sample| Some(sample.cpu)).median);
    let (mut rate, mut cpu) = match case.unit {
        Unit::Requests => (format!("{}/s", short(rate)), format!("{} µs", short(cpu * 1e6))),
        Unit::Bytes => (format!("{} MB/s", short(rate / 1e6)), format!("{} s/GB", short(cpu * 1e9))),
    };
    let first_byte = median(&|sample| sample.first_byte);
    if first_byte.is_known() {
        rate += &format!(", first byte {}", shown(first_byte, " ms"));
    }
    let mut peak = shown(median(&|sample| Some(sample.peak)), " MiB");
    let idle = median(&|sample| sample.idle);
    if idle.is_known() {
        peak += &format!(", idle {}", shown(idle, " MiB"));
    }
    if subject == Upstream {
        // The upstream is the measuring process itself.
        (cpu, peak) = (String::new(), String::new());
    }
    let over = |other: Subject| {
        let ratio = samples.ratios((&case.name, subject), (&case.name, other), |sample| sample.rate);
        if other != subject && ratio.is_known() { ratio.to_string() } else { String::new() }
    };
    let other = if case.subjects.contains(&Proxy) { Proxy } else { Registry };
    let (p50, p99) = (shown(median(&|sample| sample.p50), " ms"), shown(median(&|sample| sample.p99), " ms"));
    let nginx = [NginxCache, NginxTls].into_iter().find(|other| case.subjects.contains(other)).unwrap_or(Nginx);
    let (nginx, registry) = (over(nginx), over(other));
    format!("| {name} | {} | {rate} | {p50} | {p99} | {cpu} | {peak} | {nginx} | {registry} |\n", subject.name())
}

pub fn syncs(counted: &[(Subject, usize, f64)]) -> String {
    let mut table =
        "| syncs of a push of 1 MiB | first into a repository | each of five more |\n|---|---|---|\n".to_owned();
    for (subject, first, more) in counted {
        table += &format!("| {} | {first} | {more} |\n", subject.name());
    }
    table
}

pub fn goals(figures: &[Figure]) -> String {
    let rows: String = figures.iter().map(|figure| figure.row() + "\n").collect();
    format!("| figure | goal | reached, median of the rounds (all of them) | |\n|---|---|---|---|\n{rows}")
}

/// Replaces the tables between the marks in the file.
///
/// # Errors
/// A file that cannot be read or written, or has no marks.
pub fn write(file: &Path, tables: &str) -> Result<(), String> {
    let (before, after) = around(file)?;
    let text = format!("{before}{BEGIN}\n\n{tables}\n{END}{after}");
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

/// Checks that the tables can be written, before an hour of measurements.
///
/// # Errors
/// Those of [`write`].
pub fn check(file: &Path) -> Result<(), String> {
    around(file)?;
    let opened = fs::File::options().append(true).open(file);
    opened.map(drop).map_err(|error| format!("{}: {error}", file.display()))
}

/// The text before and after the marks.
fn around(file: &Path) -> Result<(String, String), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.ok_or_else(|| format!("{} has no {BEGIN} and {END}", file.display()))?;
    Ok((before.to_owned(), after.to_owned()))
}
