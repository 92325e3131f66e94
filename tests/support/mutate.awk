# awk -v entry=N -f mutate.awk tests/mutants.txt FILE: prints FILE with the Nth entry's breakage: each
# run of "-" lines is replaced by the "+" lines after it. Lines are compared without their
# indentation, so that a change of layout spares the list. Exit status 1: lines to be replaced are
# not there; 2: they are there more than once.
function bare(line)
{
    gsub(/^[ \t]+|[ \t]+$/, "", line)
    return line
}

# Whether the lines of a pair stand in the text from line `at` on.
function stands(pair, at,    k)
{
    for (k = 1; k <= olds[pair] && bare(text[at + k - 1]) == old[pair, k]; k++)
        continue
    return k > olds[pair]
}

FNR == NR {
    if (/^= /)
        current++
    if (current != entry)
        next
    if (/^-/ && last != "-")
        pairs++
    last = substr($0, 1, 1)
    if (last == "-")
        old[pairs, ++olds[pairs]] = bare(substr($0, 2))
    else if (last == "+")
        new[pairs, ++news[pairs]] = substr($0, 2)
    next
}

{
    text[++lines] = $0
}

END {
    for (pair = 1; pair <= pairs; pair++) {
        places = 0
        for (i = 1; i + olds[pair] - 1 <= lines; i++)
            if (stands(pair, i)) {
                here[i] = pair
                places++
            }
        if (places != 1)
            exit places == 0 ? 1 : 2
    }
    for (i = 1; i <= lines; i++) {
        pair = here[i]
        if (!pair) {
            print text[i]
            continue
        }
        for (k = 1; k <= news[pair]; k++)
            print new[pair, k]
        i += olds[pair] - 1
    }
}
