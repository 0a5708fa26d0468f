//! The measured cases, each with a name and a function that takes one sample.

use super::sample::{Sample, Unit};
use super::scene::Scene;
use super::subject::Subject;

/// Takes one sample of a server in a round.
type Run = dyn Fn(&mut Scene, Subject, u64) -> Sample;

pub struct Case {
    pub name: String,
    pub unit: Unit,
    pub subjects: Vec<Subject>,
    /// The maximum number of rounds, as some cases take long.
    pub rounds: usize,
    pub run: Box<Run>,
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        unit: Unit,
        subjects: &[Subject],
        run: impl Fn(&mut Scene, Subject, u64) -> Sample + 'static,
    ) -> Self {
        Self { name: name.into(), unit, subjects: subjects.to_vec(), rounds: usize::MAX, run: Box::new(run) }
    }

    pub fn at_most(self, rounds: usize) -> Self {
        Self { rounds, ..self }
    }

    /// The order of the servers in this round. Each round starts with another one.
    pub fn order(&self, round: u64) -> impl Iterator<Item = Subject> {
        let first = round as usize % self.subjects.len();
        self.subjects.iter().cycle().skip(first).take(self.subjects.len()).copied()
    }
}
