//! Settings from the environment, with every mistake reported at once.
//!
//! ```
//! use runtime::{Env, Span};
//!
//! # fn main() -> Result<(), runtime::ConfigError> {
//! let mut env = Env::of([("XDS_ADDRESS", "https://istiod:15012"), ("SECRET_TTL", "12h")]);
//! let xds = env.required::<String>("XDS_ADDRESS", "a URL such as https://host:15012");
//! let ttl = env.or("SECRET_TTL", "a duration such as 24h", Span::hours(24));
//! let checked = env.finish()?;
//! assert_eq!(xds.value(&checked), "https://istiod:15012");
//! assert_eq!(ttl, Span::hours(12));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::str::FromStr;

use telemetry::access::Chain;
use telemetry::log::{LogConfig, LogFilter, LogFormat, LogOutput};

/// The environment, being read. Each setting is asked for by name; [`Env::finish`] tells whether all were right.
#[derive(Clone, Debug)]
pub struct Env {
    vars: BTreeMap<String, String>,
    asked: BTreeSet<&'static str>,
    mistakes: Vec<Mistake>,
}

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A setting without which the program cannot run is not there, or is empty.
    Missing {
        /// The variable.
        name: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// A setting does not hold what it should.
    Malformed {
        /// The variable.
        name: &'static str,
        /// What it holds.
        given: String,
        /// What it should hold.
        expected: &'static str,
        /// What exactly is wrong with it.
        why: String,
    },
    /// A variable that nobody reads has nearly the name of one that is read and not set.
    NearMiss {
        /// The variable.
        name: String,
        /// The one that was meant, most likely.
        meant: &'static str,
    },
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, expected } => write!(f, "{name} is not set: give {expected}"),
            Self::Malformed { name, given, expected, why } => {
                write!(f, "{name} is `{given}`, not {expected}: {why}")
            }
            Self::NearMiss { name, meant } => write!(f, "{name} is not a setting: did you mean {meant}?"),
        }
    }
}

/// The settings are wrong, in all these ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong; at least one.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings are wrong")?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl Error for ConfigError {}

/// A required setting, to be had once the whole environment is found right.
#[derive(Debug)]
#[must_use = "its value is had by `value`"]
pub struct Setting<T>(Option<T>);

impl<T> Setting<T> {
    /// The value.
    ///
    /// # Panics
    /// If `checked` came from another [`Env`] than the setting.
    pub fn value(self, _checked: &Checked) -> T {
        self.0.expect("a checked environment has every required setting")
    }
}

/// Proof that [`Env::finish`] found no mistake.
#[derive(Debug)]
pub struct Checked(());

impl Env {
    /// The environment of this process. Variables that are not UTF-8 are as if not set.
    pub fn of_process() -> Self {
        Self::of(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// An environment of given variables.
    pub fn of<K: Into<String>, V: Into<String>>(vars: impl IntoIterator<Item = (K, V)>) -> Self {
        let vars = vars.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        Self { vars, asked: BTreeSet::new(), mistakes: Vec::new() }
    }

    /// A setting that may be absent; one that is empty is absent. `expected` completes the sentence "it should hold …".
    pub fn optional<T>(&mut self, name: &'static str, expected: &'static str) -> Option<T>
    where
        T: FromStr,
        T::Err: Error + 'static,
    {
        self.asked.insert(name);
        let given = self.vars.get(name).map(|v| v.trim()).filter(|v| !v.is_empty())?;
        match given.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let why = Chain(&error).to_string();
                self.mistakes.push(Mistake::Malformed { name, given: given.to_owned(), expected, why });
                None
            }
        }
    }

    /// A setting with a default.
    pub fn or<T>(&mut self, name: &'static str, expected: &'static str, default: T) -> T
    where
        T: FromStr,
        T::Err: Error + 'static,
    {
        self.optional(name, expected).unwrap_or(default)
    }

    /// A switch: `true`, `1`, `yes`, `on` or their contraries, in any case.
    pub fn switch(&mut self, name: &'static str, default: bool) -> bool {
        self.or(name, "true or false", Switch(default)).0
    }

    /// A setting without which the program cannot run.
    pub fn required<T>(&mut self, name: &'static str, expected: &'static str) -> Setting<T>
    where
        T: FromStr,
        T::Err: Error + 'static,
    {
        let before = self.mistakes.len();
        let value = self.optional(name, expected);
        if value.is_none() && self.mistakes.len() == before {
            self.mistakes.push(Mistake::Missing { name, expected });
        }
        Setting(value)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// With every mistake that was met, and every variable that looks like a mistyped setting.
    pub fn finish(mut self) -> Result<Checked, ConfigError> {
        let near: Vec<_> = self.near_misses().collect();
        self.mistakes.extend(near);
        if self.mistakes.is_empty() { Ok(Checked(())) } else { Err(ConfigError { mistakes: self.mistakes }) }
    }

    fn near_misses(&self) -> impl Iterator<Item = Mistake> + '_ {
        let unset = || self.asked.iter().copied().filter(|name| !self.vars.contains_key(*name));
        self.vars.keys().filter(|name| !self.asked.contains(name.as_str())).filter_map(move |name| {
            let meant = unset().find(|asked| is_near(name, asked))?;
            Some(Mistake::NearMiss { name: name.clone(), meant })
        })
    }
}

/// Two letters off in a long name, one in a short one; in another case, or with `-` for `_`.
fn is_near(name: &str, asked: &str) -> bool {
    let plain = name.to_ascii_uppercase().replace(['-', '.'], "_");
    strsim::osa_distance(&plain, asked) <= if asked.len() >= 8 { 2 } else { 1 }
}

struct Switch(bool);

impl FromStr for Switch {
    type Err = NoSwitch;

    fn from_str(s: &str) -> Result<Self, NoSwitch> {
        match s.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Self(true)),
            "false" | "0" | "no" | "off" => Ok(Self(false)),
            _ => Err(NoSwitch),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("write true or false")]
struct NoSwitch;

/// Reads `RUST_LOG` and `LOG_FORMAT`.
pub fn log_config(env: &mut Env, output: LogOutput) -> LogConfig {
    LogConfig {
        filter: env.or("RUST_LOG", "a log filter such as info,hbone=debug", LogFilter::default()),
        format: env.or("LOG_FORMAT", "text or json", LogFormat::default()),
        output,
    }
}

/// Reads `AMBIT_SECCOMP`: whether the program gives up system calls, as it should.
pub fn seccomp(env: &mut Env) -> bool {
    env.switch("AMBIT_SECCOMP", true)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::Span;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mut env =
            Env::of([("SECRET_TTL", "24 hrs"), ("INSTANCE_IP", "ten"), ("XDS_ADRESS", "https://a:1")]);
        let xds = env.required::<String>("XDS_ADDRESS", "a URL such as https://host:15012");
        let node = env.required::<String>("NODE_NAME", "the node's name");
        env.or("SECRET_TTL", "a duration such as 24h", Span::hours(24));
        env.optional::<SocketAddr>("INSTANCE_IP", "an address");
        let error = env.finish().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the settings are wrong\n  \
             XDS_ADDRESS is not set: give a URL such as https://host:15012\n  \
             NODE_NAME is not set: give the node's name\n  \
             SECRET_TTL is `24 hrs`, not a duration such as 24h: ` hrs` is no unit: use h, m, s, ms, us or ns\n  \
             INSTANCE_IP is `ten`, not an address: invalid socket address syntax\n  \
             XDS_ADRESS is not a setting: did you mean XDS_ADDRESS?"
        );
        drop((xds, node));
    }

    #[test]
    fn an_empty_variable_is_as_good_as_none() {
        let mut env = Env::of([("NETWORK", ""), ("ZTUNNEL_WORKER_THREADS", "  ")]);
        assert_eq!(env.optional::<String>("NETWORK", "a name"), None);
        assert_eq!(env.or("ZTUNNEL_WORKER_THREADS", "a number", 2u16), 2);
        env.finish().unwrap();
    }

    #[test]
    fn a_variable_of_somebody_else_is_none_of_our_business() {
        let mut env =
            Env::of([("NODE_OPTIONS", "--x"), ("XDG_RUNTIME_DIR", "/run"), ("CA_ADDRESS", "https://a")]);
        env.optional::<String>("NODE_NAME", "a name");
        env.optional::<String>("XDS_ADDRESS", "a URL");
        env.optional::<String>("CA_ADDRESS", "a URL");
        env.finish().unwrap();
    }

    #[test]
    fn a_name_that_is_set_rightly_has_no_near_miss() {
        let mut env = Env::of([("CA_ADDRESS", "a"), ("CA_ADDRES", "b")]);
        env.optional::<String>("CA_ADDRESS", "a URL");
        env.finish().unwrap();
    }

    #[test]
    fn another_case_or_a_dash_is_a_near_miss() {
        for name in ["secret_ttl", "SECRET-TTL"] {
            let mut env = Env::of([(name, "1h")]);
            env.optional::<Span>("SECRET_TTL", "a duration");
            let error = env.finish().unwrap_err();
            assert_eq!(error.mistakes, [Mistake::NearMiss { name: name.into(), meant: "SECRET_TTL" }]);
        }
    }

    #[test]
    fn a_switch_takes_the_usual_words() {
        let mut env = Env::of([("A_SWITCH", "Yes"), ("B_SWITCH", "0"), ("C_SWITCH", "maybe")]);
        assert!(env.switch("A_SWITCH", false));
        assert!(!env.switch("B_SWITCH", true));
        env.switch("C_SWITCH", true);
        assert_eq!(env.finish().unwrap_err().mistakes.len(), 1);
    }
}
