//! `roadstead reload`: lets the running server read its rules again.

use clap::Args;

use super::client::Client;
use super::options::ConfigOptions;
use super::output::print;
use super::{CliError, runtime};
use crate::control::reload::{ReloadRequest, Reloaded};

#[derive(Args, Debug)]
pub struct Reload {
    #[command(flatten)]
    options: ConfigOptions,
}

// === impl Reload ===

impl Reload {
    pub(super) fn run(self) -> Result<(), CliError> {
        let folder = self.options.load()?.storage.path;
        let reloaded = runtime::block_on(async {
            match Client::connect(&folder).await? {
                Some(mut server) => server.call("reload", &ReloadRequest {}).await,
                None => Err(CliError::NoServer(folder)),
            }
        })??;
        print(&text(&reloaded))
    }
}

fn text(reloaded: &Reloaded) -> String {
    let Reloaded { rules, needs_restart } = reloaded;
    let rules = match rules {
        None => "there are no users, so there are no rules".to_owned(),
        Some(1) => "1 rule is in force".to_owned(),
        Some(rules) => format!("{rules} rules are in force"),
    };
    match needs_restart.as_slice() {
        [] => format!("{rules}\n"),
        settings => format!("{rules}\nchanged settings that need a restart: {}\n", settings.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_names_what_needs_a_restart() {
        let text = |rules, needs_restart: &[&str]| {
            super::text(&Reloaded {
                rules,
                needs_restart: needs_restart.iter().map(|name| (*name).to_owned()).collect(),
            })
        };
        assert_eq!(text(Some(1), &[]), "1 rule is in force\n");
        let expected = "2 rules are in force\nchanged settings that need a restart: server, cache\n";
        assert_eq!(text(Some(2), &["server", "cache"]), expected);
    }
}
