//! What is measured: the cases, each a name and a way to take one sample.

use super::sample::{Sample, Unit};
use super::scene::Scene;
use super::subject::Subject;

/// Takes one sample, in which round on which server.
type Run = dyn Fn(&mut Scene, Subject, u64) -> Sample;

pub struct Case {
    pub name: String,
    pub unit: Unit,
    pub subjects: Vec<Subject>,
    /// In how many rounds at most: some take long.
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

    /// Who is asked when in this round: another one begins in each.
    pub fn order(&self, round: u64) -> impl Iterator<Item = Subject> {
        let first = round as usize % self.subjects.len();
        self.subjects.iter().cycle().skip(first).take(self.subjects.len()).copied()
    }
}
