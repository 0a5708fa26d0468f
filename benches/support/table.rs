//! The printed table: one row per figure, with its goal and whether it is reached.

#[derive(Default)]
pub struct Table {
    missed: usize,
}

impl Table {
    pub fn new() -> Self {
        println!("| figure | goal | median | worst | reached |\n|---|---|---|---|---|");
        Self::default()
    }

    /// A figure whose median over the rounds must not exceed `goal`.
    pub fn at_most(&mut self, what: &str, goal: f64, unit: &str, rounds: &[f64]) {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (median, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        self.row(what, &format!("<= {goal}{unit}"), (median, worst), unit, median <= goal);
    }

    /// A figure that must be exactly `goal` in every round.
    pub fn exactly(&mut self, what: &str, goal: f64, unit: &str, rounds: &[f64]) {
        let different = rounds.iter().copied().find(|round| *round != goal);
        self.row(what, &format!("{goal}{unit}"), (rounds[0], different.unwrap_or(goal)), unit, different.is_none());
    }

    /// A figure for orientation.
    pub fn note(&self, what: &str, value: &str) {
        println!("| {what} | | {value} | | |");
    }

    pub fn all_reached(&self) -> bool {
        self.missed == 0
    }

    fn row(&mut self, what: &str, goal: &str, (median, worst): (f64, f64), unit: &str, reached: bool) {
        self.missed += usize::from(!reached);
        let digits = |value: f64| if value.fract() == 0.0 { 0 } else { 3 };
        let (median, worst) = (format!("{median:.*}", digits(median)), format!("{worst:.*}", digits(worst)));
        println!("| {what} | {goal} | {median}{unit} | {worst}{unit} | {} |", if reached { "yes" } else { "**no**" });
    }
}
