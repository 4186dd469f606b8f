//! Log set-up: one subscriber, text or JSON, whose filter can be changed while the program runs.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt as format, reload};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object an event, its fields beside `timestamp`, `level`, `target` and `message`.
    Json,
}

impl FromStr for LogFormat {
    type Err = ParseLogFormatError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(ParseLogFormatError(other.to_owned())),
        }
    }
}

/// A log format that is neither `text` nor `json`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no log format: use text or json")]
pub struct ParseLogFormatError(String);

/// Which events are written: `info`, or `info,ztunnel=debug`, in the syntax of `RUST_LOG`. The default is `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    fn compile(&self) -> EnvFilter {
        // Checked when it was parsed; what cannot be understood any more would be skipped, not fatal.
        EnvFilter::builder().parse_lossy(&self.0)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = ParseLogFilterError;

    /// Empty is the default. A lone word that nearly is a level is refused, for as a target it would be legal and
    /// silence everything else.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let text = s.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        for word in text.split(',').map(str::trim).filter(|w| !w.contains(['=', '['])) {
            if let Some(level) = near_level(word) {
                return Err(ParseLogFilterError::Level { word: word.to_owned(), level });
            }
        }
        EnvFilter::builder().parse(text).map_err(|error| ParseLogFilterError::Directive {
            filter: text.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Self(text.to_owned()))
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn near_level(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    if LEVELS.contains(&word.as_str()) || word.parse::<u8>().is_ok() {
        return None;
    }
    match word.as_str() {
        "warning" => Some("warn"),
        "err" => Some("error"),
        _ => LEVELS.into_iter().find(|level| level.len() > 3 && strsim::osa_distance(&word, level) == 1),
    }
}

/// Why a text is no log filter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseLogFilterError {
    /// A word that looks like a mistyped level.
    #[error("`{word}` is no log level: did you mean `{level}`?")]
    Level {
        /// What was written.
        word: String,
        /// The level it resembles.
        level: &'static str,
    },
    /// A directive that is not of the form `target[span]=level`.
    #[error("`{filter}` is no log filter ({why}): write a level, or target=level, separated by commas")]
    Directive {
        /// What was written.
        filter: String,
        /// The parser's complaint.
        why: String,
    },
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output: daemons, whose whole output is their log.
    #[default]
    Stdout,
    /// Standard error: tools whose output is something else.
    Stderr,
}

/// What a program configures about its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Which events.
    pub filter: LogFilter,
    /// In which form.
    pub format: LogFormat,
    /// To where.
    pub output: LogOutput,
}

/// Changes the filter of a running program; what the admin page `/logging` holds.
#[derive(Clone, Debug)]
pub struct LogHandle {
    reload: Option<reload::Handle<EnvFilter, Registry>>,
    start: LogFilter,
}

impl LogHandle {
    /// A handle on nothing, for tests and programs that set up no log: it remembers no change.
    pub fn detached() -> Self {
        Self { reload: None, start: LogFilter::default() }
    }

    /// The filter now in force, as the subscriber prints it.
    pub fn current(&self) -> String {
        self.reload
            .as_ref()
            .and_then(|handle| handle.with_current(ToString::to_string).ok())
            .unwrap_or_else(|| self.start.to_string())
    }

    /// Puts another filter in force, for all threads, at once.
    pub fn set(&self, filter: &LogFilter) {
        if let Some(handle) = &self.reload {
            // Fails only where the subscriber is gone, and with it all output.
            let _ = handle.reload(filter.compile());
        }
    }

    /// Puts the filter in force with which the program started.
    pub fn reset(&self) {
        self.set(&self.start.clone());
    }
}

/// Installs the process's subscriber.
///
/// # Errors
/// If one is installed already.
pub fn init(config: LogConfig) -> Result<LogHandle, InitLogError> {
    let (filter, handle) = reload::Layer::new(config.filter.compile());
    let ansi = match config.output {
        LogOutput::Stdout => std::io::stdout().is_terminal(),
        LogOutput::Stderr => std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let result = match (config.format, config.output) {
        (LogFormat::Text, LogOutput::Stdout) => registry.with(format::layer().with_ansi(ansi)).try_init(),
        (LogFormat::Text, LogOutput::Stderr) => {
            registry.with(format::layer().with_ansi(ansi).with_writer(std::io::stderr)).try_init()
        }
        (LogFormat::Json, LogOutput::Stdout) => {
            registry.with(format::layer().json().flatten_event(true)).try_init()
        }
        (LogFormat::Json, LogOutput::Stderr) => {
            registry.with(format::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    };
    result.map_err(|_| InitLogError)?;
    Ok(LogHandle { reload: Some(handle), start: config.filter })
}

/// A subscriber was installed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the log is set up already")]
pub struct InitLogError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_refused_with_the_right_one() {
        for (word, level) in
            [("inof", "info"), ("warning", "warn"), ("ztunnel=debug,debg", "debug"), ("err", "error")]
        {
            let error = word.parse::<LogFilter>().unwrap_err();
            assert!(error.to_string().ends_with(&format!("did you mean `{level}`?")), "{error}");
        }
    }

    #[test]
    fn levels_and_targets_are_accepted() {
        for text in ["info", "WARN", "info,hbone=debug", "ztunnel::outbound=trace", "off", "hyper", ""] {
            text.parse::<LogFilter>().unwrap_or_else(|e| panic!("{text}: {e}"));
        }
        assert!("ztunnel=loud".parse::<LogFilter>().is_err());
    }

    #[test]
    fn a_handle_changes_and_restores_the_filter() {
        let (filter, handle) = reload::Layer::new(LogFilter::default().compile());
        let _subscriber = tracing_subscriber::registry().with(filter);
        let handle = LogHandle { reload: Some(handle), start: LogFilter::default() };
        handle.set(&"debug".parse().unwrap());
        assert_eq!(handle.current(), "debug");
        handle.reset();
        assert_eq!(handle.current(), "info");
    }
}
