"""What a scan is: files, geometry, prepared arrays, patches. numpy and nibabel only."""
