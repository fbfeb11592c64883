# Completion of deepctl for fish. @GENERATED@
#
# Nothing is started for a Tab, neither Python nor another process. The table says for every command its subcommands, its
# options (`names=what their value is`, then help) and what its arguments are; `?` marks a value that may be left out, `*`
# the last argument where it repeats. Names that are not as deepctl's names are never offered.

function __deepctl_table -S
    set commands
    set arguments
    set options
    switch $argv[1]
@TABLE@
        case '*'
            return 1
    end
    return 0
end

function __deepctl_setting -S
    switch $argv[1]
@SETTINGS@
        case '*'
            set kind
    end
end

function __deepctl_complete
    set -l tokens (commandline -opc)
    set -l value (commandline -ct)
    set -l path
    set -l commands
    set -l arguments
    set -l options
    set -l positional
    set -l user
    set -l agent main
    set -l only
    set -l wanted
    set -l name
    set -l kind
    set -l before '' # of what is offered, what is not the value: `--user=`
    __deepctl_table ''
    for token in $tokens[2..]
        if test -n "$wanted"
            if not string match -q -- '\?*' $wanted; or not string match -q -- '-*' $token
                __deepctl_note $name $token
                set wanted
                continue
            end
            set wanted
        end
        if test -z "$only"
            if test "$token" = --
                set only yes
                continue
            else if string match -q -- '--*=*' $token
                __deepctl_note (string split -m 1 = -- $token)
                continue
            else if string match -qr -- '^-[^-].' $token
                __deepctl_note (string sub -l 2 -- $token) (string sub -s 3 -- $token)
                continue
            else if string match -q -- '-?*' $token
                set name $token
                __deepctl_takes $token
                and set wanted $kind
                continue
            end
        end
        if set -q commands[1]
            test -n "$path"
            and set path "$path $token"
            or set path $token
            __deepctl_table $path
            or return
        else
            set -a positional "$token"
        end
    end

    set value (string replace -r '^["\']' '' -- $value | string collect)
    if test -n "$wanted"; and begin
            not string match -q -- '\?*' $wanted
            or not string match -q -- '-*' $value
        end
        set kind (string replace -r '^\?' '' -- $wanted)
    else if test -z "$only"; and string match -q -- '--*=*' $value
        set name (string split -m 1 = -- $value)
        __deepctl_takes $name[1]
        or return
        set before $name[1]=
        set value $name[2]
        set kind (string replace -r '^\?' '' -- $kind)
    else if test -z "$only"; and string match -qr -- '^-[^-].' $value
        __deepctl_takes (string sub -l 2 -- $value)
        or return
        set before (string sub -l 2 -- $value)
        set value (string sub -s 3 -- $value)
        set kind (string replace -r '^\?' '' -- $kind)
    else if test -z "$only"; and string match -q -- '-*' $value
        for option in $options
            set -l parts (string split -m 1 \t -- $option)
            for word in (string split -f 1 = -- $parts[1] | string split ' ')
                echo $word\t$parts[2]
            end
        end
        return
    else if set -q commands[1]
        printf '%s\n' $commands
        return
    else
        set -l count (count $positional)
        if test $count -lt (count $arguments)
            set kind (string replace -r '\*$' '' -- $arguments[(math $count + 1)])
        else if string match -q -- '*\*' $arguments[-1]
            set kind (string replace -r '\*$' '' -- $arguments[-1])
        else
            return
        end
    end
    __deepctl_offer
end

# What the value of the option $argv[1] is goes to `kind`; fails if it takes none.
function __deepctl_takes -S
    set kind
    for option in $options
        set -l parts (string split -m 1 = -- (string split -f 1 \t -- $option))
        if contains -- $argv[1] (string split ' ' -- $parts[1])
            set kind $parts[2]
            test -n "$kind"
            return
        end
    end
    return 1
end

function __deepctl_note -S
    switch $argv[1]
        case --user -u --profile
            set user "$argv[2]"
        case --agent
            set agent "$argv[2]"
    end
end

function __deepctl_offer -S
    switch $kind
        case ',*' # the words themselves
            printf "$before%s\n" (string split -n , -- $kind)
        case '+,*' # several of them
            set -l earlier (string match -r '^.*,' -- $value)
            printf "$before$earlier%s\n" (string split -n , -- (string sub -s 2 -- $kind))
        case setting
            __deepctl_setting ''
        case value
            __deepctl_setting "$positional[1]"
            test -n "$kind"
            and __deepctl_offer
        case file
            __deepctl_paths
        case directory
            __deepctl_paths | string match -r '.*/$'
        case model
            __deepctl_models
        case profile role session checkpoint memory agent
            __deepctl_names
    end
end

function __deepctl_paths -S
    set -l start (string replace -r '^~/' "$HOME/" -- $value)
    for found in $start*
        string match -qr '[[:cntrl:]]' -- $found
        and continue
        test -d $found
        and set found $found/
        echo $before$value(string sub -s (math (string length -- $start) + 1) -- $found)
    end
end

# Prints the known models of providers whose key is in the environment, and those that `deepctl models` has found.
function __deepctl_models -S
    set -l known offline
    set -l file
@MODELS@
    __deepctl_names
    if test -n "$file"; and test -f $file; and test -r $file; and not test -L $file
        while read -l line
            set -a known $line
        end <$file
    end
    for model in (string match -r '^[A-Za-z0-9][A-Za-z0-9._@+:/-]*$' -- $known)
        echo $before$model
    end
end

# Sets `root` and prints the names that are asked for.
function __deepctl_names -S
    set -l root $HOME/.local/share/deepctl
    set -l config $HOME/.config/deepctl/config.toml
    if test -d "$HOME/Library/Application Support"
        set root "$HOME/Library/Application Support/deepctl"
        set config $root/config.toml
    end
    string match -q '/*' -- "$XDG_DATA_HOME"
    and set root $XDG_DATA_HOME/deepctl
    string match -q '/*' -- "$XDG_CONFIG_HOME"
    and set config $XDG_CONFIG_HOME/deepctl/config.toml
    set -q DEEPCTL_HOME
    and set root (string replace -r '^~/' "$HOME/" -- $DEEPCTL_HOME)
    set -q DEEPCTL_CONFIG
    and set config (string replace -r '^~/' "$HOME/" -- $DEEPCTL_CONFIG)
    test -n "$root"
    or return

    if test $kind = profile
        __deepctl_entries $root/profiles/*/
        return
    end
    if test $kind = role
        printf "$before%s\n" @ROLES@
        __deepctl_entries $root/roles/*/
        return
    end
    set -q user[1]
    or set user (__deepctl_default_user "$config" $root/directories.json)
    __deepctl_is_name "$user"
    or return
    set -l profile $root/profiles/$user
    if not test -d $profile
        set profile
        for found in $root/profiles/*/
            set found (string trim -r -c / -- $found)
            if test (string lower -- (string split -r -m 1 -f 2 / -- $found | string collect)) = (string lower -- $user)
                set profile $found
                break
            end
        end
    end
    test -n "$profile"; and not test -L $profile
    or return
    switch $kind
        case session
            test -L $profile/sessions
            or __deepctl_entries $profile/sessions/*/
        case checkpoint
            __deepctl_checkpoints $profile/cache/index
        case model
            set file $profile/cache/models
        case '*'
            # The agent writes there: its links lead nowhere.
            for place in workspace workspace/.deep workspace/.deep/memory
                test -L $profile/$place
                and return
            end
            set profile $profile/workspace/.deep/memory
            if test $kind = agent
                __deepctl_entries $profile/*/
            else if __deepctl_is_name "$agent"; and not test -L $profile/$agent
                __deepctl_entries $profile/$agent/*.md
            end
    end
end

# Prints the names of those paths that are no links: directories, or regular files named *.md.
function __deepctl_entries -S
    for found in $argv
        set -l path (string trim -r -c / -- $found | string collect)
        set -l name (string split -r -m 1 -f 2 / -- $path | string collect)
        test -L $path
        and continue
        __deepctl_is_name $name
        or continue
        if test "$found" != "$path"; or test -f $path
            echo $before$name
        end
    end
end

function __deepctl_is_name
    string match -qr '\A[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}(?<!\.)\z' -- "$argv[1]"
    and not string match -qir '\A(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?\z' -- "$argv[1]"
end

function __deepctl_default_user
    if set -q DEEPCTL_USER
        echo "$DEEPCTL_USER"
        return
    end
    if test -f $argv[2]; and test -r $argv[2]; and not test -L $argv[2]
        set -l lines
        while read -l line
            set -a lines $line
        end <$argv[2]
        set -l place (pwd -P | string collect)
        while test -n "$place"
            set -l start "  \"$place\": \""
            for line in $lines
                if test (string sub -l (string length -- $start) -- $line | string collect) = $start
                    string match -r '[^"]*' -- (string sub -s (math (string length -- $start) + 1) -- $line)
                    return
                end
            end
            test $place = /
            and break
            set place (string replace -r '/[^/]*$' '' -- $place | string collect)
            test -z "$place"
            and set place /
        end
    end
    if test -f "$argv[1]"; and test -r "$argv[1]"
        while read -l line
            string match -qr '^\s*\[' -- $line # the settings that follow are a table's
            and break
            set -l found (string match -r '^\s*["\']?default_user["\']?\s*=\s*["\']([^"\']*)["\']' -- $line)
            if set -q found[2]
                echo $found[2]
                return
            end
        end <$argv[1]
    end
    echo default
end

# The index has a line a checkpoint, the newest last: id, label, session, and `@` with time and prompt. Before anything is
# typed, the newest 100 are offered, and whatever has a label.
function __deepctl_checkpoints -S
    test -f $argv[1]; and test -r $argv[1]; and not test -L $argv[1]
    or return
    set -l lines
    while read -l line
        set -a lines $line
    end <$argv[1]
    set -l name '[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}'
    set -l about '(?:\t@)?([^[:cntrl:]]*).*' # the group always matches: fish needs that of the last one
    set -l labelled (string match -r "^$name\t$name\t.*" -- $lines)[-1..1]
    test -z "$value"
    and set -q lines[101]
    and set lines $lines[-100..-1]
    set lines (string match -r "^$name\t.*" -- $lines)[-1..1]
    string replace -fr "^($name)\t($name)?\t($name)?$about\$" "$before\$1\t\$2 (\$3)  \$4" -- $lines | string replace -r \t' \(([^)]*)\)' \t'$1' | string trim -r
    string replace -fr "^($name)\t($name)\t[^\t]*$about\$" "$before\$2\t\$1  \$3" -- $labelled | string trim -r
end

complete -c deepctl -f -k -a '(__deepctl_complete)'
