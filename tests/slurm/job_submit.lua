-- What a submission is held to. Jean Zay does this with its accounts; a cluster without a database does it here.

-- The most minutes of each QoS, from fidle_utils/cluster/profiles.toml
local QOS = { @QOS@ }
local PARTITION = { a100 = "gpu_p5", h100 = "gpu_p6" } -- where a constraint leads
local INVALID_ACCOUNT, INVALID_QOS, INVALID_TIME = 2045, 2066, 2051
local NO_TIME = 4294967294

function slurm_job_submit(job, partitions, uid)
    local kind = job.features ~= nil and PARTITION[job.features] and job.features or "v100"
    if job.partition == nil and PARTITION[kind] then
        job.partition = PARTITION[kind]
    end
    -- The project is "fidle"; its hours are kept apart by kind of node.
    if job.account ~= nil then
        local wanted = (job.partition == "cpu_p1") and "cpu" or kind
        if job.account ~= "fidle@" .. wanted then
            return INVALID_ACCOUNT
        end
    end
    if job.qos ~= nil then
        local limit = QOS[job.qos] -- on how many GPUs, nobody counts here
        if limit == nil then
            return INVALID_QOS
        end
        if job.time_limit ~= NO_TIME and job.time_limit > limit then
            return INVALID_TIME
        end
    end
    return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
    return slurm.SUCCESS
end

slurm.log_info("the rules of the mini Slurm are read")
return slurm.SUCCESS
