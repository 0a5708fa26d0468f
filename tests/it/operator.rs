//! Runs the program's commands.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The output and exit code of a command.
#[derive(Debug)]
pub struct CommandOutput {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl CommandOutput {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The JSON objects, one per line, without progress reports.
    pub fn events(&self) -> Vec<Value> {
        let lines = self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:?}")));
        lines.filter(|event: &Value| event["event"] != "progress").collect()
    }
}

/// Runs `roadstead` on a data folder.
pub async fn roadstead(data: &Path, args: &[&str]) -> CommandOutput {
    roadstead_with(data, args, &[]).await
}

/// The same with environment variables.
pub async fn roadstead_with(data: &Path, args: &[&str], variables: &[(&str, &str)]) -> CommandOutput {
    let (before, after) = match args.iter().position(|arg| *arg == "--") {
        Some(at) => args.split_at(at),
        None => (args, [].as_slice()),
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_roadstead"));
    command.args(before).arg("--data").arg(data).args(after);
    command.env_clear().env("HOME", data).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(variables.iter().copied());
    let run = tokio::task::spawn_blocking(move || command.output().expect("the program runs"));
    let Output { status, stdout, stderr } = run.await.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("text");
    CommandOutput { code: status.code().expect("the command was not killed"), out: text(stdout), err: text(stderr) }
}
