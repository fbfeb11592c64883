# Completion of deepctl for bash 4.4 or later. @GENERATED@
#
# Nothing is started for a Tab, neither Python nor another process: everything here is bash's own. The table says for
# every command its subcommands, its options (with `=` and what their value is) and what its arguments are; `?` marks a
# value that may be left out, `*` the last argument where it repeats. Names that are not as deepctl's names are never
# offered.

_deepctl_table() {
	commands= arguments= options=
	local user='@USER@'
	case $1 in
@TABLE@
	*) return 1 ;;
	esac
}

_deepctl_setting() {
	case $1 in
@SETTINGS@
	*) kind= ;;
	esac
}

_deepctl() {
	COMPREPLY=()
	local line=${COMP_LINE:0:COMP_POINT} IFS=$' \t\n' LC_ALL=C word words=() cur strip=
	if [[ $line == "$COMP_LINE" && $line != *[=:@]* ]]; then
		words=("${COMP_WORDS[@]:0:COMP_CWORD + 1}")
	else
		# Readline takes words apart at = : @ and more; what nothing blank lies between belongs together.
		for word in "${COMP_WORDS[@]:0:COMP_CWORD + 1}"; do
			if [[ $line == [$' \t\n']* || ${#words[@]} -eq 0 ]]; then
				line=${line#"${line%%[!$' \t\n']*}"}
				words+=('')
			fi
			[[ $line == "$word"* ]] || word=$line # the cursor stands in this word
			words[-1]+=$word
			line=${line#"$word"}
		done
	fi
	cur=${words[-1]}
	[[ $cur == *[\"\']* ]] && cur=${cur//[\"\']/}
	# Readline only replaces what stands behind the last of its word breaks, which is $2.
	strip=${2#[\"\']} strip=${cur%"$strip"}

	local path= commands arguments options count=0 first= only= kind= wanted= name user= agent=main named= i
	_deepctl_table ''
	for ((i = 1; i < ${#words[@]} - 1; i++)); do
		word=${words[i]}
		[[ $word == *[\"\'\\]* ]] && word=${word//[\"\'\\]/}
		if [[ $wanted && ! ($wanted == \?* && $word == -*) ]]; then
			_deepctl_note "$name" "$word"
			wanted=
			continue
		fi
		wanted=
		case $only$word in
		--) only=: ;;
		--*=*) _deepctl_note "${word%%=*}" "${word#*=}" ;;
		-[!-]?*) _deepctl_note "${word:0:2}" "${word:2}" ;;
		-?*) name=$word && _deepctl_takes "$name" && wanted=$kind ;;
		*)
			if [[ $commands ]]; then
				path+=" $word"
				_deepctl_table "$path" || return 0
			else
				[[ $count -eq 0 ]] && first=$word
				count=$((count + 1))
			fi
			;;
		esac
	done

	local before= value=$cur
	if [[ $wanted && ! ($wanted == \?* && $cur == -*) ]]; then
		kind=${wanted#\?}
	elif [[ ! $only && $cur == --*=* ]]; then
		_deepctl_takes "${cur%%=*}" || return 0
		before=${cur%%=*}= value=${cur#*=} kind=${kind#\?}
	elif [[ ! $only && $cur == -[!-]?* ]]; then
		_deepctl_takes "${cur:0:2}" || return 0
		before=${cur:0:2} value=${cur:2} kind=${kind#\?}
	elif [[ ! $only && $cur == -* ]]; then
		for word in $options --help; do
			[[ $word == --* && ${word%%=*} == "$cur"* ]] && COMPREPLY+=("${word%%=*}")
		done
		return 0
	elif [[ $commands ]]; then
		kind=,$commands
	else
		local kinds=($arguments)
		if [[ $count -lt ${#kinds[@]} ]]; then
			kind=${kinds[count]%\*}
		elif [[ $arguments == *\* ]]; then
			kind=${kinds[-1]%\*}
		else
			return 0
		fi
	fi
	_deepctl_offer
	if [[ $before != "$strip" ]]; then
		for i in "${!COMPREPLY[@]}"; do
			word=$before${COMPREPLY[i]}
			COMPREPLY[i]=${word#"$strip"}
		done
	fi
}

# What the value of the option $1 is goes to `kind`; fails if it takes none.
_deepctl_takes() {
	local option
	for option in $options; do
		if [[ $option == "$1="* ]]; then
			kind=${option#*=}
			return 0
		fi
	done
	kind=
	return 1
}

_deepctl_note() {
	case $1 in
	--user | -u | --profile) user=$2 named=: ;;
	--agent) agent=$2 ;;
	esac
}

# Fills COMPREPLY with what fits `kind` and begins with `value`.
_deepctl_offer() {
	case $kind in
	,*) # the words themselves, separated by commas or blanks
		kind=${kind//,/ }
		for word in $kind; do
			[[ $word == "$value"* ]] && COMPREPLY+=("$word")
		done
		;;
	+,*) # several of them
		before+=${value%"${value##*,}"}
		kind=${kind#+}
		value=${value##*,}
		_deepctl_offer
		;;
	setting)
		_deepctl_setting ''
		_deepctl_offer
		;;
	value)
		_deepctl_setting "$first"
		[[ $kind ]] && _deepctl_offer
		;;
	file) compopt -o default ;;
	directory) compopt -o dirnames ;;
	role)
		kind=@ROLES@
		_deepctl_offer
		kind=role-of-user
		_deepctl_offer
		;;
	model)
		[[ $value == *[!A-Za-z0-9._@+:/-]* ]] && return 0
		_deepctl_models
		;;
	profile | role-of-user | session | checkpoint | memory | agent)
		# No name has anything else in it, and ~N is as good as it stands.
		[[ $value == *[!A-Za-z0-9._@+-]* ]] && return 0
		if shopt -q failglob; then
			shopt -u failglob
			_deepctl_names
			shopt -s failglob
		else
			_deepctl_names
		fi
		;;
	esac
}

# Offers the known models of providers whose key is in the environment, and those that `deepctl models` has found.
_deepctl_models() {
	local known=' offline' lines= name names=()
@MODELS@
	_deepctl_names
	if [[ $lines && -f $lines && ! -L $lines && -r $lines ]]; then
		mapfile -t -n 1000 names <"$lines"
	fi
	local -A offered=()
	local -
	set -f
	for name in $known "${names[@]}"; do
		[[ $name == "$value"* && $name == [A-Za-z0-9]* && $name != *[!A-Za-z0-9._@+:/-]* && ! ${offered[$name]-} ]] || continue
		offered[$name]=:
		COMPREPLY+=("$name")
		[[ $name == *: ]] && compopt -o nospace
	done
	return 0
}

_deepctl_names() {
	local root=${DEEPCTL_HOME-${XDG_DATA_HOME:-}} profile
	if [[ ! ${DEEPCTL_HOME+set} ]]; then
		if [[ $root == /* ]]; then
			root+=/deepctl
		elif [[ $OSTYPE == darwin* ]]; then
			root="$HOME/Library/Application Support/deepctl"
		else
			root=$HOME/.local/share/deepctl
		fi
	fi
	root=${root/#\~\//"$HOME"/}
	[[ $root ]] || return 0
	if [[ $kind == profile ]]; then
		_deepctl_entries "$root/profiles"
		return 0
	fi
	if [[ $kind == role-of-user ]]; then
		_deepctl_entries "$root/roles"
		return 0
	fi
	[[ $named ]] || _deepctl_default_user
	_deepctl_is_name "$user" || return 0
	profile=$root/profiles/$user
	if [[ ! -d $profile ]]; then
		for profile in "$root/profiles"/[A-Za-z0-9]*/; do
			profile=${profile%/} name=${profile##*/}
			[[ ${name,,} == "${user,,}" ]] && break
			profile=
		done
	fi
	[[ $profile && ! -L $profile ]] || return 0
	case $kind in
	session) [[ ! -L $profile/sessions ]] && _deepctl_entries "$profile/sessions" ;;
	checkpoint) _deepctl_checkpoints "$profile/cache/index" ;;
	model) lines=$profile/cache/models ;;
	*)
		# The agent writes there: its links lead nowhere.
		for name in workspace workspace/.deep workspace/.deep/memory; do
			[[ -L $profile/$name ]] && return 0
		done
		profile+=/workspace/.deep/memory
		if [[ $kind == agent ]]; then
			_deepctl_entries "$profile"
		elif _deepctl_is_name "$agent" && [[ ! -L $profile/$agent ]]; then
			_deepctl_entries "$profile/$agent" .md
		fi
		;;
	esac
	return 0
}

# Offers the directories in $1, or its regular files whose names end with $2.
_deepctl_entries() {
	local found
	for found in "$1/$value"*"${2-}"; do
		name=${found##*/}
		[[ ! -L $found ]] && _deepctl_is_name "$name" || continue
		if [[ ${2-} ]]; then [[ -f $found ]]; else [[ -d $found ]]; fi && COMPREPLY+=("$name")
	done
}

_deepctl_is_name() {
	[[ $1 == [A-Za-z0-9]* && $1 != *[!A-Za-z0-9._@+-]* && $1 != *. && ${#1} -le 64 ]] || return 1
	[[ ${1,,} != @(con|prn|aux|nul|com[0-9]|lpt[0-9])?(.*) ]]
}

_deepctl_default_user() {
	user=default
	if [[ ${DEEPCTL_USER+set} ]]; then
		user=$DEEPCTL_USER
		return
	fi
	local file=$root/directories.json lines line place=$PWD
	if [[ -f $file && -r $file && ! -L $file ]]; then
		mapfile -t -n 10000 lines <"$file"
		while [[ $place ]]; do
			for line in "${lines[@]}"; do
				if [[ $line == "  \"$place\": \""* ]]; then
					line=${line#"  \"$place\": \""}
					user=${line%%\"*}
					return
				fi
			done
			[[ $place == / ]] && break
			place=${place%/*}
			place=${place:-/}
		done
	fi
	file=${DEEPCTL_CONFIG-}
	if [[ ! ${DEEPCTL_CONFIG+set} ]]; then
		file=$HOME/.config
		[[ $OSTYPE == darwin* ]] && file="$HOME/Library/Application Support"
		[[ ${XDG_CONFIG_HOME:-} == /* ]] && file=$XDG_CONFIG_HOME
		file+=/deepctl/config.toml
	fi
	file=${file/#\~\//"$HOME"/}
	[[ -f $file && -r $file ]] || return 0
	mapfile -t -n 1000 lines <"$file"
	for line in "${lines[@]}"; do
		[[ $line == *([[:blank:]])[* ]] && return # the settings that follow are a table's
		if [[ $line =~ ^[[:blank:]]*[\"\']?default_user[\"\']?[[:blank:]]*=[[:blank:]]*[\"\']([^\"\']*)[\"\'] ]]; then
			user=${BASH_REMATCH[1]}
			return
		fi
	done
}

# A line a checkpoint, the newest last: id, label, session. Thousands of them must not take long, so all are looked at in
# one expansion, never one by one. Before anything is typed, the newest 100 are offered, and whatever has a label.
_deepctl_checkpoints() {
	[[ -f $1 && ! -L $1 && -r $1 ]] || return 0
	local - IFS=$'\n' lines labelled=() line i shown skip= all
	set -f
	mapfile -t lines <"$1"
	lines=("${lines[@]%%$'\t@'*}") # without time and prompt
	if [[ $value ]]; then
		all="${lines[*]}"
		if [[ $all =~ $'\t'"$value"[^$'\t\n']*$'\t' ]]; then
			labelled=(${lines[@]/*$'\t\t'*})
			for i in "${!labelled[@]}"; do
				[[ ${labelled[i]} == *$'\t'"$value"*$'\t'* ]] || unset "labelled[i]"
			done
		fi
		for ((i = 0; i < ${#value}; i++)); do
			lines=(${lines[@]##$skip[!"${value:i:1}"]*})
			skip+='?'
		done
	else
		labelled=(${lines[@]/*$'\t\t'*})
		[[ ${#lines[@]} -gt 100 ]] && lines=("${lines[@]: -100}")
	fi
	shown=("${labelled[@]#*$'\t'}")
	COMPREPLY=(${lines[@]/$'\t'*} ${shown[@]/$'\t'*})
	if [[ "${COMPREPLY[*]}" =~ [^A-Za-z0-9._@+$'\n'-] ]]; then # deepctl did not write that
		lines=("${COMPREPLY[@]}") COMPREPLY=()
		for line in "${lines[@]}"; do
			_deepctl_is_name "$line" && COMPREPLY+=("$line")
		done
	# Readline only looks at these, or inserts what they have in common, which ends before the blanks.
	elif [[ ${COMP_TYPE:-9} == @(33|63|64) && ! $strip && ${#COMPREPLY[@]} -gt 1 ]] && [[ ${COMPREPLY[0]} != "${COMPREPLY[-1]}" ]]; then
		COMPREPLY=()
		for line in "${lines[@]}"; do
			all=${line#*$'\t'} all=${all%$'\t'*}
			COMPREPLY+=("${line%%$'\t'*}  ${all:+$all }(${line##*$'\t'})")
		done
		for line in "${labelled[@]}"; do
			all=${line#*$'\t'}
			COMPREPLY+=("${all%$'\t'*}  (${line%%$'\t'*})")
		done
	fi
	return 0
}

if [[ ${BASH_VERSINFO[0]} -gt 4 || ${BASH_VERSINFO[0]} -eq 4 && ${BASH_VERSINFO[1]} -ge 4 ]]; then
	complete -o nosort -F _deepctl deepctl
fi
