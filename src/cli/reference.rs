//! Keeps `docs/reference/cli.md` up to date: the test fails if the page differs from the command tree of clap.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::Cli;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");

const INTRODUCTION: &str = "\
# Command line

`roadstead COMMAND [OPTIONS]`. `roadstead help COMMAND` and `roadstead COMMAND --help` print what this page says, and
`roadstead --version` prints the version.

This page is generated from the code by `make reference`; a test fails if it is outdated.

## Options of every command

They say which configuration is meant; `hash-password`, `completions` and `man` need none. Each takes precedence over its variable, and the variable over the configuration
file; see [configuration](configuration.md). Commands that ask a running server need the same data folder as the server.

";

const EXIT_CODES: &str = "
## Exit codes

| code | meaning |
|---|---|
| 0 | The command succeeded. For `scrub`: nothing is damaged. For `import`: everything is here. |
| 1 | The command failed; standard error has one line with the reason. For `scrub`: something is damaged. For `import` also: something of the source is not here. |
| 2 | The command line is not valid. For `scrub` also: it could not complete. |
| code of the command | `backup-lease -- COMMAND` ends with the code of `COMMAND`, or with 128 plus the number of the signal that ended it. If the lease was lost, the code is 1. |

## Other variables

| variable | meaning |
|---|---|
| `RUST_LOG` | What is logged, such as `roadstead=debug`. The default is `info`. |
| `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` | The proxy for requests to upstreams; see [upstreams](../upstreams.md#tls-and-proxies). |
";

/// The variable of an option that every command has.
fn variable(option: &Arg) -> &'static str {
    match option.get_id().as_str() {
        "config" => "`ROADSTEAD_CONFIG`",
        "listen" => "`ROADSTEAD_SERVER__LISTEN`",
        "data" => "`ROADSTEAD_STORAGE__PATH`",
        "upstreams" => "",
        "default_upstream" => "`ROADSTEAD_DEFAULT_UPSTREAM`",
        "log_format" => "`ROADSTEAD_LOG__FORMAT`",
        other => panic!("the reference page does not name the variable of --{other}: add it to `variable`"),
    }
}

fn is_shown(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version")
}

/// The argument as it is written on the command line.
fn written(argument: &Arg) -> String {
    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    match argument.get_long() {
        Some(long) if matches!(argument.get_action(), ArgAction::SetTrue) => format!("--{long}"),
        Some(long) => format!("--{long} {value}"),
        None if argument.is_last_set() => format!("-- {value}"),
        None => value,
    }
}

/// The help, followed by the accepted values and the default.
fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    if !text.ends_with('.') {
        text.push('.');
    }
    let values = argument.get_possible_values();
    let takes_value = !matches!(argument.get_action(), ArgAction::SetTrue);
    if takes_value && !values.is_empty() {
        let values = values.iter().map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({})", value.get_name(), help.to_string().trim_end_matches('.')),
            None => format!("`{}`", value.get_name()),
        });
        write!(text, " Values: {}.", values.collect::<Vec<_>>().join(", ")).unwrap();
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() {
        write!(text, " Default: `{}`.", defaults.join(" ")).unwrap();
    }
    text.replace('\n', " ").replace('|', "\\|")
}

/// Whether every command that has a configuration has this argument.
fn is_common(root: &Command, argument: &Arg) -> bool {
    let has = |command: &Command, id: &str| command.get_arguments().any(|other| other.get_id() == id);
    root.get_subcommands()
        .filter(|command| has(command, "config"))
        .all(|command| has(command, argument.get_id().as_str()))
}

fn page() -> String {
    let mut root = Cli::command();
    root.build();
    let commands: Vec<_> = root.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect();
    let root = Command::new("roadstead").subcommands(commands.clone());

    let mut page = INTRODUCTION.to_owned();
    page.push_str("| option | variable | meaning |\n|---|---|---|\n");
    for option in commands[0].get_arguments().filter(|option| is_shown(option) && is_common(&root, option)) {
        let written = written(option).replace('|', "\\|");
        writeln!(page, "| `{written}` | {} | {} |", variable(option), meaning(option)).unwrap();
    }
    for command in &commands {
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        let about = about.trim_end_matches('.').replace('\n', " ");
        write!(page, "\n## `roadstead {}`\n\n{about}.\n", command.get_name()).unwrap();
        if let Some(examples) = command.get_after_help().map(ToString::to_string) {
            let lines: Vec<_> = examples.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            write!(page, "\n```sh\n{}\n```\n", lines.join("\n")).unwrap();
        }
        let own: Vec<_> =
            command.get_arguments().filter(|option| is_shown(option) && !is_common(&root, option)).collect();
        if own.is_empty() {
            continue;
        }
        page.push_str("\n| argument | meaning |\n|---|---|\n");
        for argument in own {
            let required = if argument.is_required_set() { " Required." } else { "" };
            let written = written(argument).replace('|', "\\|");
            writeln!(page, "| `{written}` | {}{required} |", meaning(argument)).unwrap();
        }
    }
    page.push_str(EXIT_CODES);
    page
}

#[test]
fn the_reference_of_the_command_line_is_up_to_date() {
    let page = page();
    if std::env::var_os("WRITE_REFERENCE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/reference/cli.md is outdated; run `make reference`");
}
