//! `roadstead token`: makes, lists and revokes machine tokens.

use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::options::ConfigOptions;
use super::output::{Output, print, print_json};
use super::session::Session;
use super::{CliError, runtime};
use crate::access::{MachineToken, MachineTokens};
use crate::config::Config;
use crate::control::machine_tokens::{self, CreateRequest, Created, ListRequest, Listed, RevokeRequest, Revoked};
use crate::printable::Printable;

#[derive(Args, Debug)]
pub struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it. It is shown this once. Its identity is token:NAME, and rules (auth.rule) say what it may do.
    Create {
        /// The name of the token, such as that of the program that gets it.
        #[arg(value_name = "NAME")]
        name: String,

        /// Time until it expires, such as 90d. Without this option, it does not expire.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,

        /// Output format.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,

        #[command(flatten)]
        options: ConfigOptions,
    },
    /// List the tokens, without their secrets.
    List {
        /// Output format.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,

        #[command(flatten)]
        options: ConfigOptions,
    },
    /// Remove a token. It is refused from then on, with everything that clients have got for it.
    Revoke {
        /// The name of the token.
        #[arg(value_name = "NAME")]
        name: String,

        #[command(flatten)]
        options: ConfigOptions,
    },
}

// === impl Token ===

impl Token {
    pub(super) fn run(self) -> Result<(), CliError> {
        match self.command {
            TokenCommand::Create { name, expires, output, options } => {
                let request = CreateRequest { name, expires_in: expires.map(|expires| expires.as_secs()) };
                let created: Created = call(options, "token-create", &request, |config, tokens| {
                    machine_tokens::create(config, tokens, &request)
                })?;
                match output {
                    Output::Json => print_json(&json!(created).to_string()),
                    Output::Text => print(&created_text(&created)),
                }
            }
            TokenCommand::List { output, options } => {
                let listed: Listed =
                    call(options, "token-list", &ListRequest {}, |_, tokens| Ok(machine_tokens::list(tokens)))?;
                match output {
                    Output::Json => print_json(&json!(listed).to_string()),
                    Output::Text => print(&list_text(&listed.tokens)),
                }
            }
            TokenCommand::Revoke { name, options } => {
                let request = RevokeRequest { name };
                let _: Revoked =
                    call(options, "token-revoke", &request, |_, tokens| machine_tokens::revoke(tokens, &request))?;
                print(&format!("revoked token:{}\n", Printable(&request.name)))
            }
        }
    }
}

/// Asks the running server, or works on the data folder if there is none.
fn call<A: DeserializeOwned>(
    options: ConfigOptions,
    operation: &str,
    request: &impl Serialize,
    work: impl FnOnce(&Config, &MachineTokens) -> Result<A, String>,
) -> Result<A, CliError> {
    let config = options.load()?;
    runtime::block_on(async {
        match Session::open(&config).await? {
            Session::Server(mut server) => server.call(operation, request).await,
            Session::Folder(store) => {
                // Nothing else runs on this thread that the files could block.
                let tokens = machine_tokens::load(&config, &store);
                let done = tokens.and_then(|tokens| work(&config, &tokens));
                store.close().await;
                done.map_err(CliError::Token)
            }
        }
    })?
}

/// The token alone is on the standard output in its own line, so that scripts can take it.
fn created_text(created: &Created) -> String {
    let Created { identity, token, expires, rules } = created;
    let expires =
        expires.map_or_else(|| "it does not expire".to_owned(), |time| format!("it expires on {}", day(time)));
    let rights = match rules.as_slice() {
        [] => format!("no rule gives it any right yet: write one with who = \"{identity}\""),
        rules => format!("the rules that give it rights are at {}", rules.join(", ")),
    };
    format!(
        "{token}\n\nThis is the token of {identity}, shown this once: use it as a password, with any user name.\n{}; {}.\n",
        capitalised(&expires),
        Printable(&rights)
    )
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn list_text(tokens: &[MachineToken]) -> String {
    let Some(width) = tokens.iter().map(|token| token.name.chars().count()).max() else {
        return "there is no machine token; make one with `roadstead token create NAME`\n".to_owned();
    };
    let width = width.max("name".len());
    let line = |name: &str, created: &str, expires: &str, used: &str| {
        format!("{name:width$}  {created:10}  {expires:10}  {used}\n")
    };
    let rows = tokens.iter().map(|token| {
        let expires = token.expires.map_or_else(|| "never".to_owned(), day);
        let used = token.last_used.map_or_else(|| "never".to_owned(), day);
        line(&Printable(&token.name).to_string(), &day(token.created), &expires, &used)
    });
    line("name", "created", "expires", "last used") + &rows.collect::<String>()
}

/// The day of a time in seconds since 1970, in UTC.
fn day(seconds: u64) -> String {
    // Later times have no date that humantime writes.
    const LATEST: u64 = 253_402_300_799;
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds.min(LATEST))).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_in_columns() {
        let token = |name: &str, expires, last_used| MachineToken {
            name: name.to_owned(),
            created: 1_800_000_000,
            expires,
            last_used,
        };
        let text = list_text(&[token("ci", None, None), token("nightly", Some(u64::MAX), Some(1_800_100_000))]);
        let expected = "name     created     expires     last used\n\
                        ci       2027-01-15  never       never\n\
                        nightly  2027-01-15  9999-12-31  2027-01-16\n";
        assert_eq!(text, expected);
        assert!(list_text(&[]).contains("roadstead token create NAME"));
    }

    #[test]
    fn the_token_is_the_first_line() {
        let created = |rules: &[&str]| Created {
            identity: "token:ci".to_owned(),
            token: "rst_x".to_owned(),
            expires: None,
            rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        };
        let text = created_text(&created(&[]));
        assert!(text.starts_with("rst_x\n\n") && text.contains("write one with who = \"token:ci\""), "{text}");
        assert!(created_text(&created(&["a:1", "a:2"])).contains("are at a:1, a:2."));
    }
}
